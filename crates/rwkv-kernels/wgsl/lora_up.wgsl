// The second matrices of up to four low-rank pairs for many tokens: Σ up[channel] ⊙ hidden of each, in f32. A workgroup
// makes 64 channels × 32 tokens of one pair, 128 elements of the rank at a time through workgroup memory, as long as most
// pairs are: what waits for memory does so once. A thread has 4 channels × 4 tokens of every other unit, and reads 12
// vectors for 128 multiplications.
#define TOKENS 32
#define UNITS 16
#import dot_onto
#import lora_up/sums

// As in a LoraUp: rows of units of eight F16, padded.
@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;

@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// Tokens of a thread, eight apart: fewer where a batch has fewer.
override GROUPS: u32 = 4u;

const THREADS: u32 = 256u;
// Threads that have all results; the others have sums of the other units of the same.
const HALF: u32 = 128u;
const CHANNELS: u32 = 64u;

// A row's units are in other places than the row's above, so that 16 rows meet in no bank.
var<workgroup> w_tile: array<vec4<u32>, CHANNELS * UNITS>;
var<workgroup> x_tile: array<vec4<f32>, TOKENS * UNITS * 2u>;

// Eight weights by eight hidden elements.
fn eight_onto(sum: f32, w: vec4<u32>, near: vec4<f32>, far: vec4<f32>) -> f32 {
    let first = dot_onto(sum, vec4(unpack2x16float(w.x), unpack2x16float(w.y)), near);
    return dot_onto(first, vec4(unpack2x16float(w.z), unpack2x16float(w.w)), far);
}

// The part of a row of weights that a thread brings; past the last one that serves again.
fn fetch_w(pair: Pair, first_channel: u32, unit: u32, item: u32) -> vec4<u32> {
    let channel = min(first_channel + item / UNITS, params.channels - 1u);
    return weights[pair.first + channel * pair.units + min(unit + item % UNITS, pair.units - 1u)];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let pair = params.pairs[workgroup.z];
    let first_channel = workgroup.x * CHANNELS;
    let first_token = workgroup.y * TOKENS;
    let own_channel = thread % 16u;
    let own_token = thread / 16u % 8u;
    let half = thread / HALF;
#repeat c 4
#repeat t 4
    var sum_$c$t = 0.0;
#endrepeat
#endrepeat
    {
#repeat i 4
        let w_$i = fetch_w(pair, first_channel, 0u, $i * THREADS + thread);
        var x_$i: vec4<f32>;
        if $i < GROUPS {
            x_$i = fetch_x(pair, first_token, 0u, $i * THREADS + thread);
        }
#endrepeat
#repeat i 4
        let w_item_$i = $i * THREADS + thread;
        w_tile[w_item_$i ^ (w_item_$i / UNITS % UNITS)] = w_$i;
        x_tile[$i * THREADS + thread] = x_$i;
#endrepeat
    }
    workgroupBarrier();
    for (var unit = 0u; unit < pair.units; unit += UNITS) {
        // At the end the last ones are loaded again.
        let next = min(unit + UNITS, pair.units - 1u);
#repeat i 4
        let w_$i = fetch_w(pair, first_channel, next, $i * THREADS + thread);
        var x_$i: vec4<f32>;
        if $i < GROUPS {
            x_$i = fetch_x(pair, first_token, next, $i * THREADS + thread);
        }
#endrepeat
        let count = min(pair.units - unit, UNITS);
        for (var u = half; u < count; u += 2u) {
#repeat c 4
            let weight_$c = w_tile[($c * 16u + own_channel) * UNITS + (u ^ own_channel)];
#endrepeat
#repeat t 4
            if $t < GROUPS {
                let x_at = ($t * 8u + own_token) * (2u * UNITS) + 2u * u;
                let near = x_tile[x_at];
                let far = x_tile[x_at + 1u];
#repeat c 4
                sum_$c$t = eight_onto(sum_$c$t, weight_$c, near, far);
#endrepeat
            }
#endrepeat
        }
        workgroupBarrier();
#repeat i 4
        let w_item_$i = $i * THREADS + thread;
        w_tile[w_item_$i ^ (w_item_$i / UNITS % UNITS)] = w_$i;
        x_tile[$i * THREADS + thread] = x_$i;
#endrepeat
        workgroupBarrier();
    }
    // The second half's sums pass through the tile of x, which nobody reads any more.
    if half == 1u {
#repeat t 4
        x_tile[$t * HALF + thread % HALF] = vec4(sum_0$t, sum_1$t, sum_2$t, sum_3$t);
#endrepeat
    }
    workgroupBarrier();
    if half == 1u {
        return;
    }
    let to = workgroup.z * params.block;
#repeat t 4
    let token_$t = first_token + $t * 8u + own_token;
    if $t < GROUPS && token_$t < params.tokens {
        let other_$t = x_tile[$t * HALF + thread];
#repeat c 4
        let channel_$c = first_channel + $c * 16u + own_channel;
        if channel_$c < params.channels {
            y[to + token_$t * params.stride + channel_$c] = sum_$c$t + other_$t[$c];
        }
#endrepeat
    }
#endrepeat
}
