// Four tokens at once, all from the S before the first of them. With i and t tokens of the four, and W(i, t) the product of
// the decays of the tokens past i up to t:
//   yₜ = S₀ (W(−1, t−1) ⊙ rₜ) + vₜ ((u ⊙ kₜ) rₜ) + Σ_{i<t} vᵢ (kᵢ W(i, t−1) rₜ)
//   S₄ = S₀ diag(W(−1, 3))    + Σ_i vᵢ (W(i, 3) ⊙ kᵢ)ᵀ
// The dots of keys and receptances are the same for all rows. Decays are only ever multiplied: nothing grows.
#import recurrence/blocks
#import recurrence/fours

// Faded receptance, and key as the last token finds it.
const VECTORS: u32 = 2u;

// Four channels of four tokens, a column a token.
struct Block {
    r: mat4x4<f32>,
    w: mat4x4<f32>,
    k: mat4x4<f32>,
    u: vec4<f32>,
}

// By four tokens, for each t the dots of its receptance with token i's key, zero for i > t.
var<workgroup> read_dots: array<vec4<f32>, FOURS * 4u>;

fn load_ahead(place: Place, first: u32) -> Ahead {
    var ahead: Ahead;
    for (var i = 0u; i < BLOCKS; i++) {
        let block = place.thread + i * THREADS;
        let at = quads_at(place, first + block / WIDE * 4u, block % WIDE);
        let quad = place.channel / 4u + min(block % WIDE, params.head_size / 4u - 1u);
        ahead[i].r = mat4x4(r[at.x], r[at.y], r[at.z], r[at.w]);
        if ONE_DECAY {
            let one = w[quad];
            ahead[i].w = mat4x4(one, one, one, one);
        } else {
            ahead[i].w = mat4x4(w[at.x], w[at.y], w[at.z], w[at.w]);
        }
        ahead[i].k = mat4x4(k[at.x], k[at.y], k[at.z], k[at.w]);
        ahead[i].u = u[quad];
    }
    return ahead;
}

// Tokens and channels past the end change nothing.
fn settled(place: Place, first: u32, block: u32, brought: Block) -> Block {
    let there = block_there(place, first, block);
    let zero = vec4(0.0);
    var decay = brought.w;
    if ONE_DECAY {
        let w = decay[0];
        let one = vec4(decay6(w.x), decay6(w.y), decay6(w.z), decay6(w.w));
        decay = mat4x4(one, one, one, one);
    }
    return Block(
        chosen(zero, brought.r, there),
        chosen(vec4(1.0), decay, there),
        chosen(zero, brought.k, there),
        brought.u,
    );
}

fn prepare(place: Place, first: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < BLOCKS; i++) {
        let block = settled(place, first, place.thread + i * THREADS, (*ahead)[i]);
        (*ahead)[i] = block;
        let r = block.r;
        let w = block.w;
        let k = block.k;
        let second = w[1] * r[2];
        let third = w[2] * r[3];
        let terms = mat4x4(
            vec4(dot(block.u * k[0], r[0]), 0.0, 0.0, 0.0),
            vec4(dot(k[0], r[1]), dot(block.u * k[1], r[1]), 0.0, 0.0),
            vec4(dot(k[0], second), dot(k[1], r[2]), dot(block.u * k[2], r[2]), 0.0),
            vec4(dot(k[0], w[1] * third), dot(k[1], third), dot(k[2], r[3]), dot(block.u * k[3], r[3])),
        );
        partial[place.thread + i * THREADS] = sum_of_4(terms, place.thread % SUMMED);
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
            let last = w[2] * w[3];
            put(0u, block, mat4x4(x.r[0], x.r[1] * w[0], x.r[2] * two, x.r[3] * three));
            put(1u, block, mat4x4(x.k[0] * (w[1] * last), x.k[1] * last, x.k[2] * w[3], x.k[3]));
            fades[block] = three * w[3];
        }
    }
    for (var i = place.thread; i < FOURS * 4u; i += THREADS) {
        read_dots[i] = dots_of(i / 4u, i % 4u * 2u);
    }
}

fn advance(place: Place, first: u32, tile: ptr<function, Tile>) {
    var s = *tile;
    let token = own_token(place.part);
    var results = results_of(place, first);
    // All of them, so that the compiler knows how many: those past the end change nothing.
    for (var four = 0u; four < FOURS; four++) {
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
        // What this thread's own row has of its tokens.
        let x = values[four * OWN_ROWS + place.own_row];
        let read = own_sum4(reads, place.part);
        for (var e = 0u; e < EACH; e++) {
            write_y(results, e, dot_onto(read[e], x, read_dots[four * 4u + token + e]));
        }
        next_four(&results);
    }
    *tile = s;
}
