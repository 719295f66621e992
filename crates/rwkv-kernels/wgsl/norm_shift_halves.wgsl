// Layer norm and token shift of rows that matrix products alone read: each mix is left in f16, as they take it
// (halves.wgsl). A workgroup a token: it norms the row of the token and the one above, which the mixes are between, and a
// thread keeps PARTS units of both.
//
// The row before a span's first is what the state keeps. Nobody else reads that, so the first token's workgroup also
// stores what the next step will find there: the normed row of the span's last token.
//
// Where x is the sum of a residual and a product that lies in slices still, it is added up here, and kept.
enable f16;
#import reduce/$LANES
#import batch
#import grid
#import halves

// Widths, strides and channels count units of four.
struct Params {
    page: Page,
    tokens: u32,
    width: u32,
    // Between rows of x, and of each mix.
    stride: u32,
    half_stride: u32,
    // Between the mixes of y.
    block: u32,
    // Which of the state's two shift vectors.
    which: u32,
    epsilon: f32,
    // Of a product's slices: how many, from one token to the next, and from one slice to the next; and between the rows of
    // what was multiplied, which end with an exponent.
    slices: u32,
    pitch: u32,
    slice: u32,
    product_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<Token>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> mix: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> y: array<vec4<f16>>;
#ifdef X_SLICES
@group(0) @binding(9) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read> product_x: array<vec4<f16>>;
@group(0) @binding(11) var<storage, read_write> whole: array<vec4<f32>>;

// Units of four of what others keep before the sums.
const COUNTS: u32 = 256u;

// What the slices of a product add up to, in their order, as matmul_sum.wgsl does.
fn sliced(token: u32, channel: u32) -> vec4<f32> {
    let exponent = i32(product_x[(token + 1u) * params.product_stride - 1u].x);
    let first = COUNTS + token * params.pitch + channel;
    var sum = vec4(0.0);
    for (var slice = 0u; slice < params.slices; slice += 8u) {
#repeat i 8
        let sum_$i = sums[first + select(slice, slice + $i, slice + $i < params.slices) * params.slice];
#endrepeat
#repeat i 8
        sum += select(vec4(0.0), sum_$i, slice + $i < params.slices);
#endrepeat
    }
    return sum * power_of_two(exponent);
}
#endif

// What mix[m] weighs, the other one getting the rest: 0 the previous token (RWKV-6 and 7), 1 the current one (RWKV-4 and
// 5).
override WEIGHS: u32 = 0u;
override MIXES: u32 = 1u;
// Whether token i is all of span i: nothing above it is to be normed, nor where it belongs looked up.
override SINGLE: bool = false;

const MOST_MIXES: u32 = 6u;

// The bits of each mix's largest finite number.
var<workgroup> largest: array<atomic<u32>, MOST_MIXES>;

fn sum_of(value: vec4<f32>) -> f32 {
    return value.x + value.y + value.z + value.w;
}

// The workgroup's sums of the row, and of the one above it if that is to be normed.
fn both_sums(row: vec4<f32>, above: vec4<f32>, at: Invocation) -> vec2<f32> {
    if SINGLE {
        return vec2(workgroup_add(sum_of(row), at), 1.0);
    }
    return workgroup_add2(vec2(sum_of(row), sum_of(above)), at);
}

// The workgroup's largest `bits`, to be read after a barrier.
fn note_largest(m: u32, bits: u32, at: Invocation) {
#ifdef LANES_SUBGROUP
    let most = subgroupMax(bits);
    if at.lane == 0u {
        atomicMax(&largest[m], most);
    }
#else
    atomicMax(&largest[m], bits);
#endif
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let token = flat_workgroup(at);
    if token >= params.tokens {
        return;
    }
    var index = token;
    if !SINGLE {
        index = tokens[token].span;
    }
    let span = spans[index];
    if !in_page(params.page, span.slot) {
        return;
    }
    if at.thread < MOST_MIXES {
        atomicStore(&largest[at.thread], 0u);
    }
    let first = SINGLE || token == span.start;
    let row = token * params.stride;
    // Wrong for the first token, and not read then.
    let above = row - params.stride;
    let kept = ((span.slot - params.page.first_slot) * 2u + params.which) * params.width;
    // Everything is asked for before the sums, so that memory answers while the workgroup meets.
#repeat p $PARTS
    let there_$p = at.thread + $p * SIZE < params.width;
    let channel_$p = min(at.thread + $p * SIZE, params.width - 1u);
#ifdef X_SLICES
    let residual_$p = x[row + channel_$p];
#else
    let x_$p = x[row + channel_$p];
#endif
    let weight_$p = weight[channel_$p];
    let bias_$p = bias[channel_$p];
    var above_$p: vec4<f32>;
#endrepeat
#ifdef PARTS_1
    // Of one unit, registers hold all mixes.
#repeat m 6
    let mix_$m = mix[min($m, MIXES - 1u) * params.width + channel_0];
#endrepeat
#endif
    // In one branch, so that none waits for another.
    if first {
#repeat p $PARTS
        above_$p = state[kept + channel_$p];
#endrepeat
    } else {
#repeat p $PARTS
        above_$p = x[above + channel_$p];
#endrepeat
    }
#ifdef X_SLICES
    let x_0 = residual_0 + sliced(token, channel_0);
    if there_0 {
        whole[row + channel_0] = x_0;
    }
#endif
    let count = f32(4u * params.width);
    var sum = vec4(0.0);
    var sum_above = vec4(0.0);
#repeat p $PARTS
    sum += select(vec4(0.0), x_$p, there_$p);
    sum_above += select(vec4(0.0), above_$p, there_$p);
#endrepeat
    let mean = both_sums(sum, sum_above, at) / count;
    var square = vec4(0.0);
    var square_above = vec4(0.0);
#repeat p $PARTS
    square += select(vec4(0.0), (x_$p - mean.x) * (x_$p - mean.x), there_$p);
    square_above += select(vec4(0.0), (above_$p - mean.y) * (above_$p - mean.y), there_$p);
#endrepeat
    let scale = 1.0 / sqrt(both_sums(square, square_above, at) / count + params.epsilon);
#repeat p $PARTS
    let normed_$p = (x_$p - mean.x) * scale.x * weight_$p + bias_$p;
    var previous_$p = above_$p;
    if !first {
        previous_$p = (above_$p - mean.y) * scale.y * weight_$p + bias_$p;
    }
    var near_$p = normed_$p;
    var far_$p = previous_$p - normed_$p;
    if WEIGHS == 1u {
        near_$p = previous_$p;
        far_$p = normed_$p - previous_$p;
    }
#endrepeat
    let last = params.half_stride - 1u;
#ifdef PARTS_1
#repeat m 6
    let value_$m = near_0 + far_0 * mix_$m;
    if $m < MIXES {
        note_largest($m, select(0u, finite_bits(value_$m), there_0), at);
    }
#endrepeat
    workgroupBarrier();
#repeat m 6
    if $m < MIXES {
        let exponent = exponent_of(atomicLoad(&largest[$m]));
        let to = $m * params.block + token * params.half_stride;
        if there_0 {
            y[to + channel_0] = vec4<f16>(value_$m * power_of_two(-exponent));
        }
        for (var part = params.width + at.thread; part < last; part += SIZE) {
            y[to + part] = vec4<f16>();
        }
        if at.thread == 0u {
            y[to + last] = vec4(f16(exponent));
        }
    }
#endrepeat
#else
    // Twice over the mixes: their vectors are in the nearest cache the second time, and all of them at once do not fit
    // registers.
    for (var m = 0u; m < MIXES; m++) {
        let mixing = m * params.width;
        var most = 0u;
#repeat p $PARTS
        let bits_$p = finite_bits(near_$p + far_$p * mix[mixing + channel_$p]);
        most = max(most, select(0u, bits_$p, there_$p));
#endrepeat
        note_largest(m, most, at);
    }
    workgroupBarrier();
    for (var m = 0u; m < MIXES; m++) {
        let mixing = m * params.width;
        let exponent = exponent_of(atomicLoad(&largest[m]));
        let power = power_of_two(-exponent);
        let to = m * params.block + token * params.half_stride;
#repeat p $PARTS
        if there_$p {
            y[to + channel_$p] = vec4<f16>((near_$p + far_$p * mix[mixing + channel_$p]) * power);
        }
#endrepeat
        for (var part = params.width + at.thread; part < last; part += SIZE) {
            y[to + part] = vec4<f16>();
        }
        if at.thread == 0u {
            y[to + last] = vec4(f16(exponent));
        }
    }
#endif
    if !first {
        return;
    }
    // A thread stores the channels that it has read.
    if SINGLE || span.length == 1u {
#repeat p $PARTS
        if there_$p {
            state[kept + channel_$p] = normed_$p;
        }
#endrepeat
        return;
    }
    let end = (span.start + span.length - 1u) * params.stride;
    var sum_end = vec4(0.0);
#repeat p $PARTS
    let end_$p = x[end + channel_$p];
    sum_end += select(vec4(0.0), end_$p, there_$p);
#endrepeat
    let mean_end = workgroup_add(sum_of(sum_end), at) / count;
    var square_end = vec4(0.0);
#repeat p $PARTS
    square_end += select(vec4(0.0), (end_$p - mean_end) * (end_$p - mean_end), there_$p);
#endrepeat
    let scale_end = 1.0 / sqrt(workgroup_add(sum_of(square_end), at) / count + params.epsilon);
#repeat p $PARTS
    if there_$p {
        state[kept + channel_$p] = (end_$p - mean_end) * scale_end * weight_$p + bias_$p;
    }
#endrepeat
}
