// The time mix of RWKV-5 and RWKV-6 between its projections (Peng et al. 2024, "Eagle and Finch", section 4) in a step in
// which every span is one token: decay, the recurrence, group norm and gate. A workgroup a head and a span, see step/head.
//   y = norm((S + v (u ⊙ k)ᵀ) r) ⊙ g,   S ← S diag(w) + v kᵀ
#import formats/$FORMAT
#import batch
#import invocation
#import grid
#import decay6
#import step/head
#import step/lora

struct Params {
    page: Page,
    // RWKV-6: the first is the decay's. RWKV-5 has none.
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
// A row each: decay, the weight of the current token, weight and bias of the norm.
@group(0) @binding(4) var<storage, read> vectors: array<f32>;
@group(0) @binding(5) var<storage, read> gate: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

// Whether there is a gate.
override HAS_GATE: bool = false;

// Sums of the threads of a row.
var<workgroup> sums: array<vec2<f32>, THREADS>;
// By channel: receptance, decay, key and weighed key.
var<workgroup> channels: array<vec4<f32>, HEAD>;
var<workgroup> value_head: array<f32, HEAD>;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let index = item / params.heads;
    if index >= params.spans {
        return;
    }
    let span = spans[index];
    if !in_page(params.page, span.slot) {
        return;
    }
    let head = item % params.heads;
    let size = params.head_size;
    let place = place_of(at.thread);
    // The first threads have a channel each.
    let live = at.thread < size;
    let channel = head * size + min(at.thread, size - 1u);
    let width = params.heads * size;
    let base = (((span.slot - params.page.first_slot) * params.heads + head) * size + place.row) * (size / 4u);
    var s: array<vec4<f32>, QUADS>;
    if place.row < size {
        for (var j = 0u; j < QUADS; j++) {
            let quad = place.part + j * SHARE;
            if quad < size / 4u {
                s[j] = state[base + quad];
            }
        }
    }
    let row = span.start * params.stride + channel;
    var r = 0.0;
    var k = 0.0;
    var decay = 0.0;
    var u = 0.0;
    var norm_weight = 0.0;
    var norm_bias = 0.0;
    var gated = 1.0;
    if live {
        r = rkv[params.r + row];
        k = rkv[params.k + row];
        decay = vectors[channel];
        u = vectors[width + channel];
        norm_weight = vectors[2u * width + channel];
        norm_bias = vectors[3u * width + channel];
        if HAS_GATE {
            gated = gate[row];
        }
        value_head[at.thread] = rkv[params.v + row];
    } else if at.thread < HEAD {
        value_head[at.thread] = 0.0;
    }
    // Rows past the end repeat the last one.
    var rows: array<u32, SPANS>;
    rows[0] = span.start;
    var ups = up_projections(head * size + min(place.row, size - 1u), place.part, rows);
    sums[at.thread] = vec2(ups[0].x, 0.0);
    workgroupBarrier();
    if live {
        for (var p = 0u; p < SHARE; p++) {
            decay += sums[at.thread * SHARE + p].x;
        }
        channels[at.thread] = vec4(r, decay6(decay), k, u * k);
    } else if at.thread < HEAD {
        channels[at.thread] = vec4(0.0);
    }
    workgroupBarrier();
    let value = value_head[place.row];
    // S r and (u ⊙ k) r.
    var sum: vec2<f32>;
    for (var j = 0u; j < QUADS; j++) {
        let quad = place.part + j * SHARE;
        let i = 4u * quad;
        // Columns: receptance, decay, key, weighed key.
        let c = transpose(mat4x4(channels[i], channels[i + 1u], channels[i + 2u], channels[i + 3u]));
        sum += vec2(dot(s[j], c[0]), dot(c[3], c[0]));
        if place.row < size && quad < size / 4u {
            state[base + quad] = s[j] * c[1] + value * c[2];
        }
    }
    sums[at.thread] = sum;
    workgroupBarrier();
    if place.part == 0u {
        sum = vec2(0.0);
        for (var p = 0u; p < SHARE; p++) {
            sum += sums[at.thread + p];
        }
        head_values[place.row] = sum.x + value * sum.y;
    }
    workgroupBarrier();
    if live {
        let normed = head_norm(head_values[at.thread], size, params.epsilon) * norm_weight + norm_bias;
        y[row] = normed * gated;
    }
}
