// Four tokens at once, all from the S before the first of them. With i and t tokens of the four, and W(i, t) the product of
// the decays of the tokens past i up to t:
//   yₜ = S₀ (W(−1, t−1) ⊙ rₜ) + vₜ ((u ⊙ kₜ) rₜ) + Σ_{i<t} vᵢ (kᵢ W(i, t−1) rₜ)
//   S₄ = S₀ diag(W(−1, 3))    + Σ_i vᵢ (W(i, 3) ⊙ kᵢ)ᵀ
// The dots of keys and receptances are the same for all rows. Decays are only ever multiplied: nothing grows.
#import recurrence/fours

// Faded receptance, and key as the last token finds it.
const VECTORS: u32 = 2u;

// By four tokens and channel: their decays together.
var<workgroup> fades: array<vec4<f32>, FOURS * WIDE>;
// By four tokens: row i, column t is the dot of token i's key and token t's receptance.
var<workgroup> dots: array<vec4<f32>, FOURS * 4u>;
// Their sums over the channels of SUMMED lanes.
var<workgroup> partial: array<vec4<f32>, UNITS * THREADS>;

fn prepare(place: Place, first: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < UNITS; i++) {
        let unit = settled(place, first, place.thread + i * THREADS, (*ahead)[i]);
        (*ahead)[i] = unit;
        let r = unit.r;
        let w = unit.w;
        let k = unit.k;
        let now = unit.u * k * r;
        let second = w.y * r.z;
        let third = w.z * r.w;
        let terms = mat4x4(
            vec4(now.x, k.x * r.y, k.x * second, k.x * (w.y * third)),
            vec4(0.0, now.y, k.y * r.z, k.y * third),
            vec4(0.0, 0.0, now.z, k.z * r.w),
            vec4(0.0, 0.0, 0.0, now.w),
        );
        partial[place.thread + i * THREADS] = sum_of_4(terms, place.thread % SUMMED);
    }
}

fn stage(place: Place, brought: Ahead) {
    var ahead = brought;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let w = ahead[i].w;
        let two = w.x * w.y;
        let three = two * w.z;
        let last = w.z * w.w;
        put(0u, unit, ahead[i].r * vec4(1.0, w.x, two, three));
        put(1u, unit, ahead[i].k * vec4(w.y * last, last, w.w, 1.0));
        fades[unit / 4u][unit % 4u] = three * w.w;
    }
    for (var i = place.thread; i < FOURS * 4u; i += THREADS) {
        var sum = vec4(0.0);
        for (var j = 0u; j < HEAD / SUMMED; j++) {
            sum += partial[i / 4u * HEAD + j * SUMMED + i % 4u * 2u];
        }
        dots[i] = sum;
    }
}

fn advance(place: Place, first: u32, tokens: u32, tile: ptr<function, Tile>) {
    var s = *tile;
    for (var four = 0u; four * 4u < tokens; four++) {
        let at = four * 4u * WIDE + place.part;
        var added: array<vec4<f32>, ROWS>;
        var reads: array<vec4<f32>, ROWS>;
        for (var i = 0u; i < ROWS; i++) {
            added[i] = values[four * OWN_ROWS + place.team_row + i];
        }
        for (var j = 0u; j < QUADS; j++) {
            let r = quads(0u, at + j * SHARE);
            let k = quads(1u, at + j * SHARE);
            let fade = fades[four * WIDE + place.part + j * SHARE];
            for (var i = 0u; i < ROWS; i++) {
                let before = s[i * QUADS + j];
                reads[i] = dots_onto(reads[i], before, r);
                s[i * QUADS + j] = added_onto(before * fade, added[i], k);
            }
        }
        // What this thread's own row has of its tokens, by column of the dots' upper triangle.
        let x = values[four * OWN_ROWS + place.own_row];
        let d = mat4x4(dots[four * 4u], dots[four * 4u + 1u], dots[four * 4u + 2u], dots[four * 4u + 3u]);
        write_y(place, first + four * 4u, added_onto(row_sum4(reads, place.part), x, d));
    }
    *tile = s;
}
