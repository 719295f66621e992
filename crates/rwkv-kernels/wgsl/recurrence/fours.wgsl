// Four tokens at once.

// A vec4 of keys of four tokens.
fn quads(vector: u32, at: u32) -> mat4x4<f32> {
    let first = vector * STAGE * WIDE + at;
    return mat4x4(staged[first], staged[first + WIDE], staged[first + 2u * WIDE], staged[first + 3u * WIDE]);
}

// A sum a token.
fn dots_onto(sums: vec4<f32>, s: vec4<f32>, tokens: mat4x4<f32>) -> vec4<f32> {
    return vec4(
        dot_onto(sums.x, s, tokens[0]),
        dot_onto(sums.y, s, tokens[1]),
        dot_onto(sums.z, s, tokens[2]),
        dot_onto(sums.w, s, tokens[3]),
    );
}

// What four tokens add.
fn added_onto(s: vec4<f32>, x: vec4<f32>, tokens: mat4x4<f32>) -> vec4<f32> {
    return x.w * tokens[3] + (x.z * tokens[2] + (x.y * tokens[1] + (x.x * tokens[0] + s)));
}

// The lanes that answer for a row take turns.
fn write_y(place: Place, first: u32, y4: vec4<f32>) {
    const TURNS: u32 = SHARE / ROWS;
    let row = place.first_row + place.own_row;
    let turn = place.part % TURNS;
    let there = select(0u, place.end - first, row < params.head_size);
    let at = first * params.stride + place.channel + row;
    if turn == 0u && there > 0u {
        y[at] = y4.x;
    }
    if turn == 1u % TURNS && there > 1u {
        y[at + params.stride] = y4.y;
    }
    if turn == 2u % TURNS && there > 2u {
        y[at + 2u * params.stride] = y4.z;
    }
    if turn == 3u % TURNS && there > 3u {
        y[at + 3u * params.stride] = y4.w;
    }
}
