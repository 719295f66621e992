// The time mix of RWKV-5 and RWKV-6 between its projections (Peng et al. 2024, "Eagle and Finch", section 4) in a step in
// which every span is one token: decay, the recurrence, group norm and gate. A workgroup a head and a span, see step/head.
//   y = norm((S + v (u ⊙ k)ᵀ) r) ⊙ g,   S ← S diag(w) + v kᵀ
#import formats/$FORMAT
#import batch
#import grid
#import decay6
#import step/head
#import step/lora

struct Params {
    page: Page,
    // The first vec4 of the decay's hidden vectors. RWKV-5 has none.
    hidden: vec4<u32>,
    // In `rkv`: the first elements of receptance, key and value.
    r: u32,
    k: u32,
    v: u32,
    spans: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
// Span i is the token of row i.
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

// By channel_place: receptance, decay, key and weighed key.
var<workgroup> channels: array<vec4<f32>, HEAD>;

fn hidden_quad(index: u32) -> vec4<f32> {
    return hidden[index];
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let head = item % HEADS;
    let thread = thread_of(at);
    let place = place_of(thread);
    // Rows past the end repeat the last one.
    let live = place.row < HEAD_SIZE;
    let channel = head * HEAD_SIZE + min(place.row, HEAD_SIZE - 1u);

    // As in wkv7_step, all loads stand here, what depends on nothing first.
    let token = token_of(item / HEADS);
    let slot = spans[token].slot;
    var tokens: array<u32, SPANS>;
    tokens[0] = token;
    var ahead: Ahead;
    load_ahead(0u, channel, place.part, &ahead);
    var decay = vectors[channel];
    let u = vectors[WIDTH + channel];
    let norm_weight = vectors[2u * WIDTH + channel];
    let norm_bias = vectors[3u * WIDTH + channel];
    let brought = bring(0u, thread, params.hidden, tokens);
    let i = token * STRIDE + channel;
    let r = rkv[params.r + i];
    let k = rkv[params.k + i];
    let value = select(0.0, rkv[params.v + i], live);
    var gated = 1.0;
    if HAS_GATE {
        gated = gate[i];
    }
    let there = (EXACT || item / HEADS < params.spans) && in_page(params.page, slot);
    let base = state_row(slot - params.page.first_slot, head, place.row);
    var s: array<vec4<f32>, QUADS>;
    if live && there {
        for (var j = 0u; j < QUADS; j++) {
            let quad = place.part + j * SHARE;
            if quad < HEAD_SIZE / 4u {
                s[j] = state[base + quad];
            }
        }
    }
    if !there {
        return;
    }
    stage(thread, brought);
    var ups = up_projections(channel, thread, &ahead, params.hidden, tokens);
    decay += ups[0].x;
    if place.part == 0u {
        channels[channel_place(place.row)] = select(vec4(0.0), vec4(r, decay6(decay), k, u * k), live);
    }
    workgroupBarrier();
    // S r and (u ⊙ k) r.
    var sum: vec2<f32>;
    for (var j = 0u; j < QUADS; j++) {
        let quad = place.part + j * SHARE;
        // Columns: receptance, decay, key, weighed key.
        let c = transpose(mat4x4(
            channels[quad],
            channels[quad + HEAD / 4u],
            channels[quad + HEAD / 2u],
            channels[quad + HEAD / 4u * 3u],
        ));
        sum += vec2(dot(s[j], c[0]), dot(c[3], c[0]));
        if live && quad < HEAD_SIZE / 4u {
            state[base + quad] = s[j] * c[1] + value * c[2];
        }
    }
    sum = share_add2(sum, thread);
    let read = sum.x + value * sum.y;
    if place.part == 0u {
        head_values[place.row] = read;
    }
    workgroupBarrier();
    let normed = head_norm(read, place, params.epsilon) * norm_weight + norm_bias;
    if live && place.part == 0u {
        y[i] = normed * gated;
    }
}
