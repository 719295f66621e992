// What the kernels of RWKV-7's time mix bind, and what they know of a head's channels. Whoever imports this has imported
// step/lora, which finds hidden vectors by `hidden_quad`, or step/ready.
#import batch
#import grid
#import decay7
#import sigmoid
#import step/head

struct Params {
    page: Page,
    // In `projected`: the first vec4s of the hidden vectors of decay, rate, gate and value; the first elements of
    // receptance, key, value and the row that becomes the shift vector.
    hidden: vec4<u32>,
    r: u32,
    k: u32,
    v: u32,
    shifted: u32,
    spans: u32,
    // Which of the state's two shift vectors.
    which: u32,
    epsilon: f32,
    // Elements between what two pairs made, where that is ready.
    ups_block: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// Span i is the token of row i.
@group(0) @binding(1) var<storage, read> spans: array<Span>;
// What the projections made.
@group(0) @binding(2) var<storage, read> projected: array<vec4<f32>>;
// A row each: decay bias, rate bias, k_k, k_a, r_k, weight and bias of the norm, value bias.
@group(0) @binding(3) var<storage, read> vectors: array<f32>;
@group(0) @binding(4) var<storage, read> v_first: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> shift_state: array<f32>;

// Whether the value is mixed with the first layer's.
override HAS_FIRST: bool = false;
// Whether a row is kept as a shift vector.
override STORES_SHIFT: bool = false;
// Whether there is only one slot in a page, so that where its state lies need not be looked up.
override ONE_SLOT: bool = false;

// By channel_place: receptance, decay, replacement key and removal key before it is normalised; the latter times the rate,
// and the term of the bonus.
var<workgroup> channels: array<vec4<f32>, HEAD>;
var<workgroup> more_channels: array<vec2<f32>, HEAD>;

// Columns: receptance, decay, key, removal key of four channels.
fn channel_quads(i: u32) -> mat4x4<f32> {
    return transpose(mat4x4(
        channels[i],
        channels[i + HEAD / 4u],
        channels[i + HEAD / 2u],
        channels[i + HEAD / 4u * 3u],
    ));
}

// Columns: their rated removal key, the bonus.
fn more_quads(i: u32) -> mat2x4<f32> {
    return transpose(mat4x2(
        more_channels[i],
        more_channels[i + HEAD / 4u],
        more_channels[i + HEAD / 2u],
        more_channels[i + HEAD / 4u * 3u],
    ));
}

fn hidden_quad(index: u32) -> vec4<f32> {
    return projected[index];
}

fn projected_element(index: u32) -> f32 {
    return projected[index / 4u][index % 4u];
}

// What one token brings of one channel.
struct Inputs {
    r: f32,
    k: f32,
    v: f32,
    first: f32,
    shifted: f32,
}

fn inputs_of(token: u32, channel: u32) -> Inputs {
    let i = token * STRIDE + channel;
    var inputs: Inputs;
    inputs.r = projected_element(params.r + i);
    inputs.k = projected_element(params.k + i);
    inputs.v = projected_element(params.v + i);
    if HAS_FIRST {
        inputs.first = v_first[i];
    }
    if STORES_SHIFT {
        inputs.shifted = projected_element(params.shifted + i);
    }
    return inputs;
}
