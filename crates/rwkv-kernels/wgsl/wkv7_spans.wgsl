// As wkv7_step.wgsl, for many spans, whose low-rank products are ready: what counts is no longer that each is done early but
// that a core has room for many. A workgroup a head and span. A thread has parts of ROWS rows, which meet what it reads of
// the channels in workgroup memory together, and brings one channel at most, for all.
#import step/ready
#import step/wkv7_inputs

const ROWS: u32 = 4u;
// Rows from one of a thread's to the next.
const APART: u32 = HEAD / ROWS;

// By row.
var<workgroup> row_values: array<f32, HEAD>;

fn four_values(first: u32) -> vec4<f32> {
    return vec4(head_values[first], head_values[first + 1u], head_values[first + 2u], head_values[first + 3u]);
}

// (x − mean) / √(variance + ε) of one of the head's values.
fn normed(value: f32) -> f32 {
    var sum = vec4(0.0);
    for (var i = 0u; i < HEAD_SIZE; i += 4u) {
        sum += four_values(i);
    }
    let mean = (sum.x + sum.y + sum.z + sum.w) / f32(HEAD_SIZE);
    var square = vec4(0.0);
    for (var i = 0u; i < HEAD_SIZE; i += 4u) {
        let d = four_values(i) - mean;
        square += d * d;
    }
    let variance = (square.x + square.y + square.z + square.w) / f32(HEAD_SIZE);
    return (value - mean) * (1.0 / sqrt(variance + params.epsilon));
}

@group(0) @binding(7) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let thread = thread_of(at);
    let head = item % HEADS;
    let first = item / HEADS;
    let part = thread % SHARE;
    let row = thread / SHARE;
    let token = token_of(first);
    let slot = spans[token].slot;
    // The whole workgroup's.
    if (!EXACT && first >= params.spans) || !in_page(params.page, slot) {
        return;
    }
    let index = slot - params.page.first_slot;
    // Rows and channels past the end are zero.
#repeat i 4
    var s_$i: array<vec4<f32>, QUADS>;
    if row + $i * APART < HEAD_SIZE {
        let base = state_row(index, head, row + $i * APART);
        for (var j = 0u; j < QUADS; j++) {
            if part + j * SHARE < HEAD_SIZE / 4u {
                s_$i[j] = state[base + part + j * SHARE];
            }
        }
    }
#endrepeat
    let owns = thread < HEAD_SIZE;
    let channel = head * HEAD_SIZE + min(thread, HEAD_SIZE - 1u);
    let inputs = inputs_of(token, channel);
    let up = up_of(token, channel);
    let rate = sigmoid(up.y + vectors[WIDTH + channel]);
    var value = inputs.v;
    if HAS_FIRST {
        value += (inputs.first - value) * sigmoid(up.w + vectors[7u * WIDTH + channel]);
    }
    if thread < HEAD {
        let decay = decay7(up.x + vectors[channel]);
        let removal = inputs.k * vectors[2u * WIDTH + channel];
        let key = inputs.k * (1.0 + (rate - 1.0) * vectors[3u * WIDTH + channel]);
        let bonus = inputs.r * key * vectors[4u * WIDTH + channel];
        let own = channel_place(thread);
        channels[own] = select(vec4(0.0), vec4(inputs.r, decay, key, removal), owns);
        more_channels[own] = select(vec2(0.0), vec2(removal * rate, bonus), owns);
        row_values[thread] = select(0.0, value, owns);
    }
    let norm_weight = vectors[5u * WIDTH + channel];
    let norm_bias = vectors[6u * WIDTH + channel];
    workgroupBarrier();
    // By row S κ, and S diag(w) r; then κ κ, (κ ⊙ a) r, k r and the bonus: κ is still to be divided by its length.
    var removals: vec4<f32>;
    var kept: vec4<f32>;
    var dots: vec4<f32>;
    for (var j = 0u; j < QUADS; j++) {
        let c = channel_quads(part + j * SHARE);
        let m = more_quads(part + j * SHARE);
        let faded = c[1] * c[0];
        removals += vec4(dot(s_0[j], c[3]), dot(s_1[j], c[3]), dot(s_2[j], c[3]), dot(s_3[j], c[3]));
        kept += vec4(dot(s_0[j], faded), dot(s_1[j], faded), dot(s_2[j], faded), dot(s_3[j], faded));
        dots += vec4(dot(c[3], c[3]), dot(m[0], c[0]), dot(c[2], c[0]), m[1].x + m[1].y + m[1].z + m[1].w);
    }
    removals = share_add(removals, thread);
    kept = share_add(kept, thread);
    dots = share_add(dots, thread);
    let scale = 1.0 / max(sqrt(dots.x), 1e-12);
    let removed = -removals * scale;
    let values = vec4(
        row_values[row],
        row_values[row + APART],
        row_values[row + 2u * APART],
        row_values[row + 3u * APART],
    );
    let read = kept + removed * (dots.y * scale) + values * dots.z;
#repeat i 4
    if part == u32($i) {
        head_values[row + $i * APART] = read[$i];
    }
#endrepeat
    workgroupBarrier();
    for (var j = 0u; j < QUADS; j++) {
        let quad = part + j * SHARE;
        let c = channel_quads(quad);
        let rated = more_quads(quad)[0] * scale;
        if quad < HEAD_SIZE / 4u {
#repeat i 4
            if row + $i * APART < HEAD_SIZE {
                let to = state_row(index, head, row + $i * APART) + quad;
                state[to] = s_$i[j] * c[1] + removed[$i] * rated + values[$i] * c[2];
            }
#endrepeat
        }
    }
    if owns {
        let result = normed(head_values[thread]) * norm_weight + norm_bias;
        y[token * STRIDE + channel] = (result + dots.w * value) * up.z;
        if STORES_SHIFT {
            shift_state[(index * 2u + params.which) * WIDTH + channel] = inputs.shifted;
        }
    }
}
