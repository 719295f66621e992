// What the second matrices of the low-rank pairs make, as another kernel has left it (lora_up.wgsl): in the place of
// step/lora.
@group(1) @binding(0) var<storage, read> ups: array<f32>;

// Of one token, each pair's.
fn up_of(token: u32, channel: u32) -> vec4<f32> {
    let at = token * STRIDE + channel;
    var all = vec4(ups[at], ups[at + params.ups_block], ups[at + 2u * params.ups_block], 0.0);
    if HAS_FIRST {
        all.w = ups[at + 3u * params.ups_block];
    }
    return all;
}

#ifndef ROWS_4
const SPANS: u32 = $SPANS;

alias Ahead = u32;
alias Brought = u32;

fn load_ahead(first: u32, channel: u32, part: u32, ahead: ptr<function, Ahead>) {}

fn bring(first: u32, thread: u32, places: vec4<u32>, tokens: array<u32, SPANS>) -> Brought {
    return 0u;
}

fn stage(thread: u32, brought: Brought) {}

fn up_projections(
    channel: u32,
    thread: u32,
    ahead: ptr<function, Ahead>,
    places: vec4<u32>,
    tokens: array<u32, SPANS>,
) -> array<vec4<f32>, SPANS> {
    var token_of = tokens;
    var all: array<vec4<f32>, SPANS>;
    for (var n = 0u; n < SPANS; n++) {
        all[n] = up_of(token_of[n], channel);
    }
    return all;
}
#endif
