// Token by token: what a token adds to does not depend on where in a span it is, nor where spans are cut.

// Receptance, decay, key.
const VECTORS: u32 = 3u;

// What the current token weighs.
var<workgroup> weights: array<vec4<f32>, WIDE>;

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

fn advance(place: Place, first: u32, tokens: u32, tile: ptr<function, Tile>) {
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
