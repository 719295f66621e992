// Four tokens at once: all their dots with rows of S are dots with the S before the first of them, of vectors that the
// decays in between have faded, plus what the tokens between have added. With i and t tokens of the four, W(i, t) the
// product of the decays of the tokens past i up to t, ρ = κ ⊙ a and d the removed values −S κ of a row:
//   dₜ = −S₀ (W(−1, t−1) ⊙ κₜ) − Σ_{i<t} dᵢ (ρᵢ W(i, t−1) κₜ) + vᵢ (kᵢ W(i, t−1) κₜ)
//   yₜ =  S₀ (W(−1, t) ⊙ rₜ)   + Σ_{i≤t} dᵢ (ρᵢ W(i, t) rₜ)   + vᵢ (kᵢ W(i, t) rₜ)
//   S₄ =  S₀ diag(W(−1, 3))    + Σ_i dᵢ (W(i, 3) ⊙ ρᵢ)ᵀ       + vᵢ (W(i, 3) ⊙ kᵢ)ᵀ
// So the lanes of a row meet once in four tokens. The dots of vectors among themselves are the same for all rows. Decays
// are only ever multiplied: nothing grows.
#import recurrence/fours

// Faded removal key and receptance, rated removal key and key as the last token finds them.
const VECTORS: u32 = 4u;

// By four tokens and channel: their decays together.
var<workgroup> fades: array<vec4<f32>, FOURS * WIDE>;
// By four tokens, the dots of ρ, then those of k: row t, column i has κₜ's with token i's for i < t, row i, column t rₜ's
// with token i's for i ≤ t.
var<workgroup> dots: array<vec4<f32>, FOURS * 8u>;
// Their sums over the channels of SUMMED lanes.
var<workgroup> partial: array<vec4<f32>, UNITS * THREADS>;

// One channel's terms of the dots of x with the keys and the receptances.
fn terms(x: vec4<f32>, unit: Unit) -> mat4x4<f32> {
    let r = unit.r;
    let w = unit.w;
    let kappa = unit.kappa;
    // x as later tokens find it.
    let x1 = x.x * w.y;
    let x2 = x1 * w.z;
    let x3 = x2 * w.w;
    let y2 = x.y * w.z;
    let y3 = y2 * w.w;
    let z3 = x.z * w.w;
    return mat4x4(
        vec4(x.x, x1, x2, x3) * r,
        vec4(x.x * kappa.y, x.y * r.y, y2 * r.z, y3 * r.w),
        vec4(x1 * kappa.z, x.y * kappa.z, x.z * r.z, z3 * r.w),
        vec4(x2 * kappa.w, y2 * kappa.w, x.z * kappa.w, x.w * r.w),
    );
}

fn prepare(place: Place, first: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < UNITS; i++) {
        let unit = settled(place, first, place.thread + i * THREADS, (*ahead)[i]);
        (*ahead)[i] = unit;
        let removals = terms(unit.rate, unit);
        let keys = terms(unit.k, unit);
        let both = array(
            removals[0], removals[1], removals[2], removals[3],
            keys[0], keys[1], keys[2], keys[3],
        );
        partial[place.thread + i * THREADS] = sum_of_8(both, place.thread % SUMMED);
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
        let after = vec4(w.y * last, last, w.w, 1.0);
        put(0u, unit, ahead[i].kappa * vec4(1.0, w.x, two, three));
        put(1u, unit, ahead[i].r * vec4(w.x, two, three, three * w.w));
        put(2u, unit, ahead[i].rate * after);
        put(3u, unit, ahead[i].k * after);
        fades[unit / 4u][unit % 4u] = three * w.w;
    }
    for (var i = place.thread; i < FOURS * 8u; i += THREADS) {
        var sum = vec4(0.0);
        for (var j = 0u; j < HEAD / SUMMED; j++) {
            sum += partial[i / 8u * HEAD + j * SUMMED + i % 8u];
        }
        dots[i] = sum;
    }
}

alias Quads = array<mat4x4<f32>, QUADS>;

// Whether the removal keys of the next four tokens fit into registers beside all else.
const KEYS_AHEAD: bool = QUADS <= 2u;

fn row_quads(vector: u32, at: u32) -> Quads {
    var found: Quads;
    for (var j = 0u; j < QUADS; j++) {
        found[j] = quads(vector, at + j * SHARE);
    }
    return found;
}

fn advance(place: Place, first: u32, tokens: u32, tile: ptr<function, Tile>) {
    var s = *tile;
    var kappas = row_quads(0u, place.part);
    for (var four = 0u; four * 4u < tokens; four++) {
        let at = four * 4u * WIDE + place.part;
        if !KEYS_AHEAD {
            kappas = row_quads(0u, at);
        }
        var receptances = row_quads(1u, at);
        var removal_dots: array<vec4<f32>, ROWS>;
        var reads: array<vec4<f32>, ROWS>;
        for (var j = 0u; j < QUADS; j++) {
            for (var i = 0u; i < ROWS; i++) {
                removal_dots[i] = dots_onto(removal_dots[i], s[i * QUADS + j], kappas[j]);
            }
        }
        for (var j = 0u; j < QUADS; j++) {
            for (var i = 0u; i < ROWS; i++) {
                reads[i] = dots_onto(reads[i], s[i * QUADS + j], receptances[j]);
            }
        }
        // All that is known before the lanes meet.
        var removal_quads = row_quads(2u, at);
        var key_quads = row_quads(3u, at);
        // This thread's own row of its tokens.
        let x = values[four * OWN_ROWS + place.own_row];
        let p = mat4x4(dots[four * 8u], dots[four * 8u + 1u], dots[four * 8u + 2u], dots[four * 8u + 3u]);
        let q = mat4x4(dots[four * 8u + 4u], dots[four * 8u + 5u], dots[four * 8u + 6u], dots[four * 8u + 7u]);
        let second = x.x * q[1].x;
        let third = x.y * q[2].y + x.x * q[2].x;
        let fourth = x.z * q[3].z + (x.y * q[3].y + x.x * q[3].x);
        let sums = row_sum4(removal_dots, place.part);
        let read = row_sum4(reads, place.part);
        var removed = vec4(-sums.x, 0.0, 0.0, 0.0);
        removed.y = -(removed.x * p[1].x + (sums.y + second));
        removed.z = -(removed.y * p[2].y + (removed.x * p[2].x + (sums.z + third)));
        removed.w = -(removed.z * p[3].z + (removed.y * p[3].y + (removed.x * p[3].x + (sums.w + fourth))));
        for (var i = 0u; i < ROWS; i++) {
            let removals = of_row4(removed, i, place.lane);
            let added = values[four * OWN_ROWS + place.team_row + i];
            for (var j = 0u; j < QUADS; j++) {
                let faded = s[i * QUADS + j] * fades[four * WIDE + place.part + j * SHARE];
                let known = added_onto(faded, added, key_quads[j]);
                s[i * QUADS + j] = added_onto(known, removals, removal_quads[j]);
            }
        }
        if KEYS_AHEAD {
            kappas = row_quads(0u, min(four + 1u, FOURS - 1u) * 4u * WIDE + place.part);
        }
        // By column of the dots' upper triangles.
        var y4 = read;
        y4.x += removed.x * p[0].x + x.x * q[0].x;
        y4.y += removed.x * p[0].y + x.x * q[0].y + (removed.y * p[1].y + x.y * q[1].y);
        y4.z += removed.x * p[0].z + x.x * q[0].z + (removed.y * p[1].z + x.y * q[1].z)
            + (removed.z * p[2].z + x.z * q[2].z);
        y4.w += removed.x * p[0].w + x.x * q[0].w + (removed.y * p[1].w + x.y * q[1].w)
            + (removed.z * p[2].w + x.z * q[2].w) + (removed.w * p[3].w + x.w * q[3].w);
        write_y(place, first + four * 4u, y4);
    }
    *tile = s;
}
