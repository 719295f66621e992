// Four tokens at once. Where one of them has something that is not finite, so may the results of those before it: the dots
// with what a token does not see are zeros, but products all the same.

// By four tokens and channel: their decays together.
var<workgroup> fades: array<vec4<f32>, FOURS * WIDE>;
// The vectors' dots among themselves, summed over the channels of SUMMED lanes.
var<workgroup> partial: array<vec4<f32>, BLOCKS * THREADS>;

// What a lane has of them, summed over all channels.
fn dots_of(four: u32, lane: u32) -> vec4<f32> {
    var sum = vec4(0.0);
    for (var j = 0u; j < WIDE / SUMMED; j++) {
        sum += partial[four * WIDE + j * SUMMED + lane];
    }
    return sum;
}

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

// Where a lane's results of four tokens go.
struct Results {
    writes: bool,
    token: u32,
    // The first one's place, and the span's end.
    to: u32,
    end: u32,
}

// From the four tokens on that begin with `first`.
fn results_of(place: Place, first: u32) -> Results {
    let token = own_token(place.part);
    let row = place.first_row + place.own_row;
    return Results(
        place.part % TURNS % SAME == 0u && row < params.head_size,
        first + token,
        (first + token) * params.stride + place.channel + row,
        place.end,
    );
}

fn write_y(results: Results, e: u32, value: f32) {
    if results.writes && results.token + e < results.end {
        y[results.to + e * params.stride] = value;
    }
}

fn next_four(results: ptr<function, Results>) {
    (*results).token += 4u;
    (*results).to += 4u * params.stride;
}
