// Token by token: what a token adds to does not depend on where in a span it is, nor where spans are cut.

#import recurrence/channels

// Receptance, decay, both keys, the rated removal key.
const VECTORS: u32 = 5u;

// A channel of four tokens. `rate` is the in-context rate as it comes, then that times the removal key.
struct Unit {
    r: vec4<f32>,
    w: vec4<f32>,
    k: vec4<f32>,
    kappa: vec4<f32>,
    rate: vec4<f32>,
}

fn load_ahead(place: Place, first: u32) -> Ahead {
    var ahead: Ahead;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let at = elements(place, first + unit / HEAD * 4u, unit % HEAD);
        let kappa = at + params.block;
        ahead[i].r = vec4(r[at.x], r[at.y], r[at.z], r[at.w]);
        ahead[i].w = vec4(w[at.x], w[at.y], w[at.z], w[at.w]);
        ahead[i].k = vec4(keys[at.x], keys[at.y], keys[at.z], keys[at.w]);
        ahead[i].kappa = vec4(keys[kappa.x], keys[kappa.y], keys[kappa.z], keys[kappa.w]);
        ahead[i].rate = vec4(a[at.x], a[at.y], a[at.z], a[at.w]);
    }
    return ahead;
}

// Tokens and channels past the end change nothing.
fn settled(place: Place, first: u32, unit: u32, brought: Unit) -> Unit {
    let there = are_there(place, first + unit / HEAD * 4u, unit % HEAD);
    let zero = vec4(0.0);
    return Unit(
        select(zero, brought.r, there),
        select(vec4(1.0), brought.w, there),
        select(zero, brought.k, there),
        select(zero, brought.kappa, there),
        select(zero, brought.kappa * brought.rate, there),
    );
}

fn stage(place: Place, brought: Ahead) {
    var ahead = brought;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        put(0u, unit, ahead[i].r);
        put(1u, unit, ahead[i].w);
        put(2u, unit, ahead[i].k);
        put(3u, unit, ahead[i].kappa);
        put(4u, unit, ahead[i].rate);
    }
}

fn advance(place: Place, first: u32, tile: ptr<function, Tile>) {
    let tokens = min(STAGE, place.end - first);
    var s = *tile;
    for (var t = 0u; t < tokens; t++) {
        var sums: array<f32, ROWS>;
        for (var j = 0u; j < QUADS; j++) {
            let kappa = quad(3u, t, place.part + j * SHARE);
            for (var i = 0u; i < ROWS; i++) {
                sums[i] = dot_onto(sums[i], s[i * QUADS + j], kappa);
            }
        }
        let removed = -row_sum(sums, place.part);
        var removals: array<f32, ROWS>;
        var added: array<f32, ROWS>;
        var reads: array<f32, ROWS>;
        for (var i = 0u; i < ROWS; i++) {
            removals[i] = of_row(removed, i, place.lane);
            added[i] = values[t / 4u * OWN_ROWS + place.team_row + i][t % 4u];
        }
        for (var j = 0u; j < QUADS; j++) {
            let r = quad(0u, t, place.part + j * SHARE);
            let w = quad(1u, t, place.part + j * SHARE);
            let k = quad(2u, t, place.part + j * SHARE);
            let rate = quad(4u, t, place.part + j * SHARE);
            for (var i = 0u; i < ROWS; i++) {
                let next = s[i * QUADS + j] * w + removals[i] * rate + added[i] * k;
                s[i * QUADS + j] = next;
                reads[i] = dot_onto(reads[i], next, r);
            }
        }
        write_y(place, first + t, row_sum(reads, place.part));
    }
    *tile = s;
}
