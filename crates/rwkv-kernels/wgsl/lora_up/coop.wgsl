// Tiles of hidden vectors and weights in f16 for cooperative matrices; who imports this defines the CHANNELS and THREADS of
// a workgroup. Hidden vectors are rounded as they come; what passes f16's range stays at the end of it: decay's and gate's
// are results of tanh and sigmoid, and what the others make goes through a sigmoid.

// As in a LoraUp: rows of units of eight F16, padded.
@group(1) @binding(0) var<storage, read> weights: array<vec4<f16>>;

const SIDE: u32 = 16u;
const LANES: u32 = 32u;
const THREADS: u32 = $THREADS;
const CHANNELS: u32 = $CHANNELS;
// Of a row, in fours: what a step has, and from one row of a tile to the next, 16 bytes more, in other banks.
const QUADS: u32 = 2u * UNITS;
const PITCH: u32 = QUADS + 2u;

var<workgroup> x_tile: array<vec4<f16>, TOKENS * PITCH>;
var<workgroup> w_tile: array<vec4<f16>, CHANNELS * PITCH>;

// The part of a row of weights that a thread brings; past the last one that serves again, where x is zero.
fn fetch_w(pair: Pair, first_channel: u32, unit: u32, item: u32) -> vec4<f16> {
    let quad = min(2u * unit + item % QUADS, 2u * pair.units - 1u);
    return weights[(pair.first + (first_channel + item / QUADS) * pair.units) * 2u + quad];
}

fn rounded(value: vec4<f32>) -> vec4<f16> {
    // What is no number stays none.
    let within = clamp(value, vec4(-65504.0), vec4(65504.0));
    return vec4<f16>(select(within, value, value != value));
}
