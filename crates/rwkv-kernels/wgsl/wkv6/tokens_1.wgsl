// Token by token: what a token adds to does not depend on where in a span it is, nor where spans are cut.

#import recurrence/channels

// Receptance, decay, key.
const VECTORS: u32 = 3u;

// What the current token weighs.
var<workgroup> weights: array<f32, HEAD>;

fn four_weights(at: u32) -> vec4<f32> {
    let first = at * 4u;
    return vec4(weights[first], weights[first + 1u], weights[first + 2u], weights[first + 3u]);
}

// A channel of four tokens.
struct Unit {
    r: vec4<f32>,
    w: vec4<f32>,
    k: vec4<f32>,
    u: f32,
}

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

fn stage(place: Place, brought: Ahead) {
    var ahead = brought;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        put(0u, unit, ahead[i].r);
        put(1u, unit, ahead[i].w);
        put(2u, unit, ahead[i].k);
        if unit < HEAD {
            weights[unit] = ahead[i].u;
        }
    }
}

fn advance(place: Place, first: u32, tile: ptr<function, Tile>) {
    let tokens = min(STAGE, place.end - first);
    var s = *tile;
    for (var t = 0u; t < tokens; t++) {
        var added: array<f32, ROWS>;
        var reads: array<f32, ROWS>;
        for (var i = 0u; i < ROWS; i++) {
            added[i] = values[t / 4u * OWN_ROWS + place.team_row + i][t % 4u];
        }
        for (var j = 0u; j < QUADS; j++) {
            let r = quad(0u, t, place.part + j * SHARE);
            let w = quad(1u, t, place.part + j * SHARE);
            let k = quad(2u, t, place.part + j * SHARE);
            let weight = four_weights(place.part + j * SHARE);
            for (var i = 0u; i < ROWS; i++) {
                let before = s[i * QUADS + j];
                let now = added[i] * k;
                reads[i] = dot_onto(reads[i], before + weight * now, r);
                s[i * QUADS + j] = before * w + now;
            }
        }
        write_y(place, first + t, row_sum(reads, place.part));
    }
    *tile = s;
}
