// Token by token: what a token adds to does not depend on where in a span it is, nor where spans are cut.

#import recurrence/channels

alias Element = f32;

// Receptance, decay, key.
const VECTORS: u32 = 3u;

// What the current token weighs.
var<workgroup> weights: array<vec4<f32>, WIDE>;

// A channel of four tokens.
struct Unit {
    r: vec4<f32>,
    w: vec4<f32>,
    k: vec4<f32>,
    u: f32,
}

alias Ahead = array<Unit, UNITS>;

fn load_ahead(place: Place, first: u32) -> Ahead {
    var ahead: Ahead;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let at = elements(place, first + unit / HEAD * 4u, unit % HEAD);
        let channel = place.channel + min(unit % HEAD, params.head_size - 1u);
        ahead[i].r = vec4(r[at.x], r[at.y], r[at.z], r[at.w]);
        if ONE_DECAY {
            ahead[i].w = vec4(w[channel]);
        } else {
            ahead[i].w = vec4(w[at.x], w[at.y], w[at.z], w[at.w]);
        }
        ahead[i].k = vec4(k[at.x], k[at.y], k[at.z], k[at.w]);
        ahead[i].u = u[channel];
    }
    return ahead;
}

// Tokens and channels past the end change nothing.
fn settled(place: Place, first: u32, unit: u32, brought: Unit) -> Unit {
    let there = are_there(place, first + unit / HEAD * 4u, unit % HEAD);
    let zero = vec4(0.0);
    var decay = brought.w;
    if ONE_DECAY {
        decay = vec4(decay6(decay.x));
    }
    return Unit(
        select(zero, brought.r, there),
        select(vec4(1.0), decay, there),
        select(zero, brought.k, there),
        brought.u,
    );
}

fn prepare(place: Place, first: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < UNITS; i++) {
        (*ahead)[i] = settled(place, first, place.thread + i * THREADS, (*ahead)[i]);
    }
}

fn stage(place: Place, brought: Ahead) {
    var ahead = brought;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        put(0u, unit, ahead[i].r);
        put(1u, unit, ahead[i].w);
        put(2u, unit, ahead[i].k);
        if unit < HEAD {
            weights[unit / 4u][unit % 4u] = ahead[i].u;
        }
    }
}

fn advance(place: Place, first: u32, tile: ptr<function, Tile>) {
    let tokens = min(STAGE, place.end - first);
    var s = *tile;
    for (var t = 0u; t < tokens; t++) {
        let at = t * WIDE + place.part;
        var added: array<f32, ROWS>;
        var reads: array<f32, ROWS>;
        for (var i = 0u; i < ROWS; i++) {
            added[i] = values[t / 4u * OWN_ROWS + place.team_row + i][t % 4u];
        }
        for (var j = 0u; j < QUADS; j++) {
            let r = staged[at + j * SHARE];
            let w = staged[STAGE * WIDE + at + j * SHARE];
            let k = staged[2u * STAGE * WIDE + at + j * SHARE];
            let weight = weights[place.part + j * SHARE];
            for (var i = 0u; i < ROWS; i++) {
                let before = s[i * QUADS + j];
                let now = added[i] * k;
                reads[i] = dot_onto(reads[i], before + weight * now, r);
                s[i * QUADS + j] = before * w + now;
            }
        }
        let read = row_sum(reads, place.part);
        let row = place.first_row + place.own_row;
        if row < params.head_size && place.part % (SHARE / ROWS) == 0u {
            y[(first + t) * params.stride + place.channel + row] = read;
        }
    }
    *tile = s;
}
