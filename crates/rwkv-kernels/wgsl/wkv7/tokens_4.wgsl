// Four tokens at once: all their dots with rows of S are dots with the S before the first of them, of vectors that the
// decays in between have faded, plus what the tokens between have added. With i and t tokens of the four, W(i, t) the
// product of the decays of the tokens past i up to t, ρ = κ ⊙ a and d the removed values −S κ of a row:
//   dₜ = −S₀ (W(−1, t−1) ⊙ κₜ) − Σ_{i<t} dᵢ (ρᵢ W(i, t−1) κₜ) + vᵢ (kᵢ W(i, t−1) κₜ)
//   yₜ =  S₀ (W(−1, t) ⊙ rₜ)   + Σ_{i≤t} dᵢ (ρᵢ W(i, t) rₜ)   + vᵢ (kᵢ W(i, t) rₜ)
//   S₄ =  S₀ diag(W(−1, 3))    + Σ_i dᵢ (W(i, 3) ⊙ ρᵢ)ᵀ       + vᵢ (W(i, 3) ⊙ kᵢ)ᵀ
// So the lanes of a row meet once in four tokens. The dots of vectors among themselves are the same for all rows. Decays
// are only ever multiplied: nothing grows.
#import recurrence/blocks
#import recurrence/fours

// Faded removal key and receptance, rated removal key and key as the last token finds them.
const VECTORS: u32 = 4u;

// Four channels of four tokens, a column a token. `rate` is the in-context rate as it comes, then that times the removal key.
struct Block {
    r: mat4x4<f32>,
    w: mat4x4<f32>,
    k: mat4x4<f32>,
    kappa: mat4x4<f32>,
    rate: mat4x4<f32>,
}

// By four tokens, of ρ, then of k: for each t the dots of W(i, t) rₜ with token i's, zero for i > t.
var<workgroup> read_dots: array<vec4<f32>, FOURS * 8u>;
// By four tokens, the dots of W(i, t−1) κₜ with token i's: of ρ for i, t = 0, 1; 0, 2; 0, 3; 1, 2, of k for the same, then of
// each for 1, 3 and 2, 3.
var<workgroup> removal_dots: array<vec4<f32>, FOURS * 3u>;

fn load_ahead(place: Place, first: u32) -> Ahead {
    var ahead: Ahead;
    for (var i = 0u; i < BLOCKS; i++) {
        let block = place.thread + i * THREADS;
        let at = quads_at(place, first + block / WIDE * 4u, block % WIDE);
        let kappa = at + params.block / 4u;
        ahead[i].r = mat4x4(r[at.x], r[at.y], r[at.z], r[at.w]);
        ahead[i].w = mat4x4(w[at.x], w[at.y], w[at.z], w[at.w]);
        ahead[i].k = mat4x4(keys[at.x], keys[at.y], keys[at.z], keys[at.w]);
        ahead[i].kappa = mat4x4(keys[kappa.x], keys[kappa.y], keys[kappa.z], keys[kappa.w]);
        ahead[i].rate = mat4x4(a[at.x], a[at.y], a[at.z], a[at.w]);
    }
    return ahead;
}

// Tokens and channels past the end change nothing.
fn settled(place: Place, first: u32, block: u32, brought: Block) -> Block {
    let there = block_there(place, first, block);
    let zero = vec4(0.0);
    let one = vec4(1.0);
    let x = brought;
    let kappa = x.kappa;
    let rate = mat4x4(
        kappa[0] * x.rate[0],
        kappa[1] * x.rate[1],
        kappa[2] * x.rate[2],
        kappa[3] * x.rate[3],
    );
    return Block(
        chosen(zero, x.r, there),
        chosen(one, x.w, there),
        chosen(zero, x.k, there),
        chosen(zero, kappa, there),
        chosen(zero, rate, there),
    );
}

// Four channels' terms of the dots of x with the receptances and the removal keys: of token i with rₜ in column t, row i for
// i ≤ t, with κₜ in column i, row t for i < t.
fn terms(x: mat4x4<f32>, block: Block) -> mat4x4<f32> {
    let r = block.r;
    let w = block.w;
    let kappa = block.kappa;
    // x as later tokens find it.
    let x1 = x[0] * w[1];
    let x2 = x1 * w[2];
    let x3 = x2 * w[3];
    let y2 = x[1] * w[2];
    let y3 = y2 * w[3];
    let z3 = x[2] * w[3];
    return mat4x4(
        vec4(dot(x[0], r[0]), dot(x[0], kappa[1]), dot(x1, kappa[2]), dot(x2, kappa[3])),
        vec4(dot(x1, r[1]), dot(x[1], r[1]), dot(x[1], kappa[2]), dot(y2, kappa[3])),
        vec4(dot(x2, r[2]), dot(y2, r[2]), dot(x[2], r[2]), dot(x[2], kappa[3])),
        vec4(dot(x3, r[3]), dot(y3, r[3]), dot(z3, r[3]), dot(x[3], r[3])),
    );
}

fn prepare(place: Place, first: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < BLOCKS; i++) {
        let block = settled(place, first, place.thread + i * THREADS, (*ahead)[i]);
        (*ahead)[i] = block;
        let removals = terms(block.rate, block);
        let keys = terms(block.k, block);
        let both = array(
            removals[0], removals[1], removals[2], removals[3],
            keys[0], keys[1], keys[2], keys[3],
        );
        partial[place.thread + i * THREADS] = sum_of_8(both, place.thread % SUMMED);
    }
}

fn stage(place: Place, brought: Ahead) {
    var ahead = brought;
    for (var i = 0u; i < BLOCKS; i++) {
        let block = place.thread + i * THREADS;
        if block < FOURS * WIDE {
            let x = ahead[i];
            let w = x.w;
            let two = w[0] * w[1];
            let three = two * w[2];
            let all = three * w[3];
            let last = w[2] * w[3];
            let first = w[1] * last;
            put(0u, block, mat4x4(x.kappa[0], x.kappa[1] * w[0], x.kappa[2] * two, x.kappa[3] * three));
            put(1u, block, mat4x4(x.r[0] * w[0], x.r[1] * two, x.r[2] * three, x.r[3] * all));
            put(2u, block, mat4x4(x.rate[0] * first, x.rate[1] * last, x.rate[2] * w[3], x.rate[3]));
            put(3u, block, mat4x4(x.k[0] * first, x.k[1] * last, x.k[2] * w[3], x.k[3]));
            fades[block] = all;
        }
    }
    for (var i = place.thread; i < FOURS * 8u; i += THREADS) {
        let there = vec4(0u, 1u, 2u, 3u) <= vec4(i % 4u);
        read_dots[i] = select(vec4(0.0), dots_of(i / 8u, i % 8u), there);
    }
    for (var i = place.thread; i < FOURS * 3u; i += THREADS) {
        let four = i / 3u;
        let which = i % 3u;
        if which < 2u {
            removal_dots[i] = vec4(dots_of(four, which * 4u).yzw, dots_of(four, which * 4u + 1u).z);
        } else {
            removal_dots[i] = vec4(
                dots_of(four, 1u).w,
                dots_of(four, 2u).w,
                dots_of(four, 5u).w,
                dots_of(four, 6u).w,
            );
        }
    }
}

alias Quads = array<mat4x4<f32>, QUADS>;

fn row_quads(vector: u32, at: u32) -> Quads {
    var found: Quads;
    for (var j = 0u; j < QUADS; j++) {
        found[j] = quads(vector, at + j * SHARE);
    }
    return found;
}

fn advance(place: Place, first: u32, tile: ptr<function, Tile>) {
    var s = *tile;
    let token = own_token(place.part);
    var results = results_of(place, first);
    // All of them, so that the compiler knows how many: those past the end change nothing.
    for (var four = 0u; four < FOURS; four++) {
        let at = four * 4u * WIDE + place.part;
        var kappas = row_quads(0u, at);
        var receptances = row_quads(1u, at);
        var removals: array<vec4<f32>, ROWS>;
        var reads: array<vec4<f32>, ROWS>;
        for (var j = 0u; j < QUADS; j++) {
            for (var i = 0u; i < ROWS; i++) {
                removals[i] = dots_onto(removals[i], s[i * QUADS + j], kappas[j]);
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
        let p = removal_dots[four * 3u];
        let q = removal_dots[four * 3u + 1u];
        let last = removal_dots[four * 3u + 2u];
        let second = x.x * q.x;
        let third = x.y * q.w + x.x * q.y;
        let fourth = x.z * last.w + (x.y * last.z + x.x * q.z);
        let sums = row_sum4(removals, place.part);
        let read = own_sum4(reads, place.part);
        var removed = vec4(-sums.x, 0.0, 0.0, 0.0);
        removed.y = -(removed.x * p.x + (sums.y + second));
        removed.z = -(removed.y * p.w + (removed.x * p.y + (sums.z + third)));
        removed.w = -(removed.z * last.y + (removed.y * last.x + (removed.x * p.z + (sums.w + fourth))));
        for (var i = 0u; i < ROWS; i++) {
            let of_row = of_row4(removed, i, place.lane);
            let added = values[four * OWN_ROWS + place.team_row + i];
            for (var j = 0u; j < QUADS; j++) {
                let faded = s[i * QUADS + j] * fades[four * WIDE + place.part + j * SHARE];
                let known = added_onto(faded, added, key_quads[j]);
                s[i * QUADS + j] = added_onto(known, of_row, removal_quads[j]);
            }
        }
        for (var e = 0u; e < EACH; e++) {
            let dots = four * 8u + token + e;
            write_y(results, e, dot_onto(dot_onto(read[e], removed, read_dots[dots]), x, read_dots[dots + 4u]));
        }
        next_four(&results);
    }
    *tile = s;
}
