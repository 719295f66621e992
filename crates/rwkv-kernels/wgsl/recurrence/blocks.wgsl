// A thread brings a Block of four channels, or four value rows, of four tokens at a time, so heads have a multiple of four
// channels.

const BLOCKS: u32 = (FOURS * WIDE + THREADS - 1u) / THREADS;
const VALUE_BLOCKS: u32 = (FOURS * OWN_ROWS / 4u + THREADS - 1u) / THREADS;

alias Element = vec4<f32>;
alias Ahead = array<Block, BLOCKS>;
// By token.
alias Values = array<mat4x4<f32>, VALUE_BLOCKS>;

// By vector, token and channel.
var<workgroup> staged: array<vec4<f32>, VECTORS * STAGE * WIDE>;

// Where four channels of four tokens from `first` on lie in an activation, in fours. Past the end of the head or the span
// they are others that are there: no branch stands between two loads.
fn quads_at(place: Place, first: u32, quad: u32) -> vec4<u32> {
    let tokens = min(vec4(first) + vec4(0u, 1u, 2u, 3u), vec4(place.end - 1u));
    return tokens * (params.stride / 4u) + place.channel / 4u + min(quad, params.head_size / 4u - 1u);
}

// Which of four tokens from `first` on are there.
fn tokens_there(place: Place, first: u32) -> vec4<bool> {
    return vec4(0u, 1u, 2u, 3u) < vec4(place.end - min(first, place.end));
}

// Which tokens of a block from `first` on are there: none past the end of the head.
fn block_there(place: Place, first: u32, block: u32) -> vec4<bool> {
    let in_head = block % WIDE * 4u < params.head_size;
    return tokens_there(place, first + block / WIDE * 4u) & vec4(in_head);
}

// A column a token: x where it is there, else the other one.
fn chosen(other: vec4<f32>, x: mat4x4<f32>, there: vec4<bool>) -> mat4x4<f32> {
    return mat4x4(
        select(other, x[0], there.x),
        select(other, x[1], there.y),
        select(other, x[2], there.z),
        select(other, x[3], there.w),
    );
}

// The value rows of the tokens from `first` on.
fn load_values(place: Place, first: u32) -> Values {
    var ahead: Values;
    for (var i = 0u; i < VALUE_BLOCKS; i++) {
        let block = place.thread + i * THREADS;
        let four = min(block / (OWN_ROWS / 4u), FOURS - 1u);
        let at = quads_at(place, first + four * 4u, place.first_row / 4u + block % (OWN_ROWS / 4u));
        ahead[i] = mat4x4(v[at.x], v[at.y], v[at.z], v[at.w]);
    }
    return ahead;
}

fn stage_values(place: Place, first: u32, brought: Values) {
    var ahead = brought;
    for (var i = 0u; i < VALUE_BLOCKS; i++) {
        let block = place.thread + i * THREADS;
        let row = block % (OWN_ROWS / 4u) * 4u;
        if block < FOURS * OWN_ROWS / 4u {
            let four = block / (OWN_ROWS / 4u);
            let in_head = place.first_row + row < params.head_size;
            let there = tokens_there(place, first + four * 4u) & vec4(in_head);
            let rows = transpose(ahead[i]);
            for (var j = 0u; j < 4u; j++) {
                values[four * OWN_ROWS + row + j] = select(vec4(0.0), rows[j], there);
            }
        }
    }
}

// Puts four channels of four tokens where they are staged.
fn put(vector: u32, block: u32, x: mat4x4<f32>) {
    let at = (vector * STAGE + block / WIDE * 4u) * WIDE + block % WIDE;
    for (var t = 0u; t < 4u; t++) {
        staged[at + t * WIDE] = x[t];
    }
}
