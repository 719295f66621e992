// RWKV-7's time mix between its projections (Peng et al. 2025, "RWKV-7 Goose", section 4) in a step in which every span is
// one token: the low-rank pairs' second matrices, decay, in-context rate, value residual, both keys, the recurrence, group
// norm, bonus and gate. A workgroup a head and SPANS spans, see step/head.
//   S ← S diag(w) − (S κ) (κ ⊙ a)ᵀ + v kᵀ,   y = (norm(S r) + (Σ r ⊙ k ⊙ r_k) v) ⊙ g
// S r is not summed over the new state, but over the three terms that it is made of: so all sums over a row are over what
// is known before, and the threads of a row meet once.
#import formats/$FORMAT
#import batch
#import invocation
#import grid
#import sigmoid
#import step/head
#import step/lora

struct Params {
    page: Page,
    // Decay, rate, gate, value.
    pairs: array<Pair, 4>,
    // Units of all pairs.
    units: u32,
    spans: u32,
    heads: u32,
    head_size: u32,
    // Between rows of activations, in elements.
    stride: u32,
    // The first elements of receptance, key and value.
    r: u32,
    k: u32,
    v: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> rkv: array<f32>;
@group(0) @binding(3) var<storage, read> hidden: array<vec4<f32>>;
// A row each: decay bias, rate bias, k_k, k_a, r_k, weight and bias of the norm, value bias.
@group(0) @binding(4) var<storage, read> vectors: array<f32>;
@group(0) @binding(5) var<storage, read> v_first: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

// Whether the value is mixed with the first layer's.
override HAS_FIRST: bool = false;

// Sums of the threads of a row.
var<workgroup> sums: array<vec4<f32>, THREADS>;
var<workgroup> more_sums: array<vec2<f32>, THREADS>;
// By channel: receptance, decay, replacement key and removal key before it is normalised; the latter times the rate, and
// the term of the bonus.
var<workgroup> channels: array<vec4<f32>, HEAD>;
var<workgroup> more_channels: array<vec2<f32>, HEAD>;
var<workgroup> value_head: array<f32, HEAD>;

// What one token brings of one channel.
struct Inputs {
    r: f32,
    k: f32,
    v: f32,
    first: f32,
}

fn inputs_of(span: Span, channel: u32) -> Inputs {
    let i = span.start * params.stride + channel;
    var inputs = Inputs(rkv[params.r + i], rkv[params.k + i], rkv[params.v + i], 0.0);
    if HAS_FIRST {
        inputs.first = v_first[i];
    }
    return inputs;
}

// The first vec4 of a row of a state.
fn state_row(span: Span, head: u32, row: u32) -> u32 {
    let quads = params.head_size / 4u;
    return (((span.slot - params.page.first_slot) * params.heads + head) * params.head_size + row) * quads;
}

fn read_state(span: Span, head: u32, place: Place) -> array<vec4<f32>, QUADS> {
    var s: array<vec4<f32>, QUADS>;
    if place.row < params.head_size && in_page(params.page, span.slot) {
        let base = state_row(span, head, place.row);
        for (var j = 0u; j < QUADS; j++) {
            let quad = place.part + j * SHARE;
            if quad < params.head_size / 4u {
                s[j] = state[base + quad];
            }
        }
    }
    return s;
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let first = item / params.heads * SPANS;
    if first >= params.spans {
        return;
    }
    let head = item % params.heads;
    let size = params.head_size;
    let place = place_of(at.thread);
    // The first threads have a channel each.
    let live = at.thread < size;
    let channel = head * size + min(at.thread, size - 1u);
    let width = params.heads * size;

    // Spans past the end repeat the last one.
    var turns: array<Span, SPANS>;
    var rows: array<u32, SPANS>;
    for (var n = 0u; n < SPANS; n++) {
        turns[n] = spans[min(first + n, params.spans - 1u)];
        rows[n] = turns[n].start;
    }
    var s = read_state(turns[0], head, place);
    var inputs: Inputs;
    var decay_bias = 0.0;
    var rate_bias = 0.0;
    var k_k = 0.0;
    var k_a = 0.0;
    var r_k = 0.0;
    var norm_weight = 0.0;
    var norm_bias = 0.0;
    var value_bias = 0.0;
    if live {
        inputs = inputs_of(turns[0], channel);
        decay_bias = vectors[channel];
        rate_bias = vectors[width + channel];
        k_k = vectors[2u * width + channel];
        k_a = vectors[3u * width + channel];
        r_k = vectors[4u * width + channel];
        norm_weight = vectors[5u * width + channel];
        norm_bias = vectors[6u * width + channel];
        if HAS_FIRST {
            value_bias = vectors[7u * width + channel];
        }
    }
    // Rows past the end repeat the last one.
    var ups = up_projections(head * size + min(place.row, size - 1u), place.part, rows);

    for (var n = 0u; n < SPANS; n++) {
        let span = turns[n];
        if first + n >= params.spans || !in_page(params.page, span.slot) {
            continue;
        }
        if n > 0u {
            s = read_state(span, head, place);
            if live {
                inputs = inputs_of(span, channel);
            }
        }
        sums[at.thread] = ups[n];
        workgroupBarrier();
        var value = 0.0;
        var gate = 0.0;
        if live {
            var up = vec4(0.0);
            for (var p = 0u; p < SHARE; p++) {
                up += sums[at.thread * SHARE + p];
            }
            let decay = exp(-0.6065306597126334 * sigmoid(up.x + decay_bias));
            let rate = sigmoid(up.y + rate_bias);
            gate = up.z;
            value = inputs.v;
            if HAS_FIRST {
                value += (inputs.first - value) * sigmoid(up.w + value_bias);
            }
            let removal = inputs.k * k_k;
            let key = inputs.k * (1.0 + (rate - 1.0) * k_a);
            channels[at.thread] = vec4(inputs.r, decay, key, removal);
            more_channels[at.thread] = vec2(removal * rate, inputs.r * key * r_k);
            value_head[at.thread] = value;
        } else if at.thread < HEAD {
            channels[at.thread] = vec4(0.0);
            more_channels[at.thread] = vec2(0.0);
            value_head[at.thread] = 0.0;
        }
        workgroupBarrier();
        // S κ, S diag(w) r, κ κ, (κ ⊙ a) r, k r, the bonus: κ is still to be divided by its length.
        var sum: vec4<f32>;
        var more: vec2<f32>;
        for (var j = 0u; j < QUADS; j++) {
            let i = 4u * (place.part + j * SHARE);
            // Columns: receptance, decay, key, removal key; and the rated removal key, the bonus.
            let c = transpose(mat4x4(channels[i], channels[i + 1u], channels[i + 2u], channels[i + 3u]));
            let m = transpose(mat4x2(more_channels[i], more_channels[i + 1u], more_channels[i + 2u], more_channels[i + 3u]));
            sum += vec4(dot(s[j], c[3]), dot(s[j] * c[1], c[0]), dot(c[3], c[3]), dot(m[0], c[0]));
            more += vec2(dot(c[2], c[0]), m[1].x + m[1].y + m[1].z + m[1].w);
        }
        sums[at.thread] = sum;
        more_sums[at.thread] = more;
        workgroupBarrier();
        sum = vec4(0.0);
        more = vec2(0.0);
        for (var p = 0u; p < SHARE; p++) {
            sum += sums[place.row * SHARE + p];
            more += more_sums[place.row * SHARE + p];
        }
        let scale = 1.0 / max(sqrt(sum.z), 1e-12);
        let removed = -sum.x * scale;
        let row_value = value_head[place.row];
        if place.row < size {
            let base = state_row(span, head, place.row);
            for (var j = 0u; j < QUADS; j++) {
                let quad = place.part + j * SHARE;
                let i = 4u * quad;
                let c = transpose(mat4x4(channels[i], channels[i + 1u], channels[i + 2u], channels[i + 3u]));
                let rated = vec4(more_channels[i].x, more_channels[i + 1u].x, more_channels[i + 2u].x, more_channels[i + 3u].x);
                if quad < size / 4u {
                    state[base + quad] = s[j] * c[1] + removed * (rated * scale) + row_value * c[2];
                }
            }
        }
        if place.part == 0u {
            head_values[place.row] = sum.y + removed * (sum.w * scale) + row_value * more.x;
        }
        workgroupBarrier();
        if live {
            let normed = head_norm(head_values[at.thread], size, params.epsilon) * norm_weight + norm_bias;
            y[span.start * params.stride + channel] = (normed + more.y * value) * gate;
        }
    }
}
