// A thread brings a Unit of a channel, or a value row, of four tokens at a time; tokens are taken one by one.

const UNITS: u32 = FOURS * HEAD / THREADS;
const VALUE_UNITS: u32 = (FOURS * OWN_ROWS + THREADS - 1u) / THREADS;

alias Element = f32;
alias Ahead = array<Unit, UNITS>;
alias Values = array<vec4<f32>, VALUE_UNITS>;

// By vector, token and channel. No vectors: several threads would write parts of one, and some may write old parts back.
var<workgroup> staged: array<f32, VECTORS * STAGE * HEAD>;

// Where a channel of four tokens from `first` on lies in an activation. Past the end of the head or the span it is one
// again that is there: no branch stands between two loads.
fn elements(place: Place, first: u32, channel: u32) -> vec4<u32> {
    let tokens = min(vec4(first) + vec4(0u, 1u, 2u, 3u), vec4(place.end - 1u));
    return tokens * params.stride + place.channel + min(channel, params.head_size - 1u);
}

// Whether four tokens from `first` on have such a channel.
fn are_there(place: Place, first: u32, channel: u32) -> vec4<bool> {
    let there = select(0u, place.end - min(first, place.end), channel < params.head_size);
    return vec4(0u, 1u, 2u, 3u) < vec4(there);
}

// The value rows of the tokens from `first` on.
fn load_values(place: Place, first: u32) -> Values {
    var ahead: Values;
    for (var i = 0u; i < VALUE_UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let row = place.first_row + unit % OWN_ROWS;
        let at = elements(place, first + min(unit / OWN_ROWS, FOURS - 1u) * 4u, row);
        ahead[i] = vec4(v[at.x], v[at.y], v[at.z], v[at.w]);
    }
    return ahead;
}

fn stage_values(place: Place, first: u32, brought: Values) {
    var ahead = brought;
    for (var i = 0u; i < VALUE_UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let row = place.first_row + unit % OWN_ROWS;
        if unit < FOURS * OWN_ROWS {
            let there = are_there(place, first + unit / OWN_ROWS * 4u, row);
            values[unit] = select(vec4(0.0), ahead[i], there);
        }
    }
}

// Tokens and channels past the end change nothing.
fn prepare(place: Place, first: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < UNITS; i++) {
        (*ahead)[i] = settled(place, first, place.thread + i * THREADS, (*ahead)[i]);
    }
}

// Puts four tokens of a unit's channel where they are staged.
fn put(vector: u32, unit: u32, x: vec4<f32>) {
    let at = (vector * STAGE + unit / HEAD * 4u) * HEAD + unit % HEAD;
    for (var t = 0u; t < 4u; t++) {
        staged[at + t * HEAD] = x[t];
    }
}

// A token's vec4 of keys.
fn quad(vector: u32, token: u32, at: u32) -> vec4<f32> {
    let first = (vector * STAGE + token) * HEAD + at * 4u;
    return vec4(staged[first], staged[first + 1u], staged[first + 2u], staged[first + 3u]);
}

// The result of the row that this lane answers for, which others have too.
fn write_y(place: Place, token: u32, value: f32) {
    let row = place.first_row + place.own_row;
    if row < params.head_size && place.part % (SHARE / ROWS) == 0u {
        y[token * params.stride + place.channel + row] = value;
    }
}
