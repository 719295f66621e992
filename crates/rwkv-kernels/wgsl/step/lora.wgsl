// The second matrices of up to four low-rank pairs, for one channel a row of threads: Σ up[channel] ⊙ hidden. The pairs
// are cut into steps of SHARE units, a unit a thread; a step has units of one pair. A thread asks for the weights of AHEAD
// steps before it needs any of them, which for published models is all; what it multiplies them by, every row the same, is
// brought to workgroup memory meanwhile.
//
// Whoever imports this has `hidden_quad(index)`, a vec4 of the hidden vectors.

// Tokens that read a weight together.
const SPANS: u32 = $SPANS;

// The most steps at once: of the registers of a processor their weights take half, and their hidden vectors 4 KiB of
// workgroup memory.
const DEPTH: u32 = min(8192u / THREADS, 128u / SHARE) / SPANS;
const STAGED: u32 = DEPTH * SHARE * SPANS * PARTS;
// Vec4s of hidden vectors that a thread brings.
const BRINGS: u32 = (STAGED + THREADS - 1u) / THREADS;

override AHEAD: u32 = 1u;
// 0 where there is no pair.
override RANK_0: u32 = 0u;
override RANK_1: u32 = 0u;
override RANK_2: u32 = 0u;
override RANK_3: u32 = 0u;
// Units a row, and the steps before those of each pair.
override UNITS_0: u32 = (RANK_0 + UNIT - 1u) / UNIT;
override UNITS_1: u32 = (RANK_1 + UNIT - 1u) / UNIT;
override UNITS_2: u32 = (RANK_2 + UNIT - 1u) / UNIT;
override UNITS_3: u32 = (RANK_3 + UNIT - 1u) / UNIT;
override STEP_1: u32 = (UNITS_0 + SHARE - 1u) / SHARE;
override STEP_2: u32 = STEP_1 + (UNITS_1 + SHARE - 1u) / SHARE;
override STEP_3: u32 = STEP_2 + (UNITS_2 + SHARE - 1u) / SHARE;
override STEPS: u32 = STEP_3 + (UNITS_3 + SHARE - 1u) / SHARE;

alias Ahead = array<Unit, DEPTH>;
alias Brought = array<vec4<f32>, BRINGS>;

// By step, token, part of a unit and thread of a row: threads of a row read vec4s that follow each other.
var<workgroup> staged: array<vec4<f32>, STAGED>;

fn pair_of(step: u32) -> u32 {
    return u32(step >= STEP_1) + u32(step >= STEP_2) + u32(step >= STEP_3);
}

fn of_pair(all: vec4<u32>, pair: u32) -> u32 {
    return select(select(all.x, all.y, pair == 1u), select(all.z, all.w, pair == 3u), pair >= 2u);
}

fn first_step(pair: u32) -> u32 {
    return of_pair(vec4(0u, STEP_1, STEP_2, STEP_3), pair);
}

// This thread's weights of AHEAD steps. Past the end of a pair or of all of them, a weight again that is there: no branch
// stands between two loads, and the hidden vectors are zero there.
fn load_ahead(first: u32, channel: u32, part: u32, ahead: ptr<function, Ahead>) {
    for (var i = 0u; i < AHEAD; i++) {
        let step = min(first + i, max(STEPS, 1u) - 1u);
        let pair = pair_of(step);
        let units = of_pair(vec4(UNITS_0, UNITS_1, UNITS_2, UNITS_3), pair);
        let before = of_pair(vec4(0u, UNITS_0, UNITS_0 + UNITS_1, UNITS_0 + UNITS_1 + UNITS_2), pair);
        let unit = min((step - first_step(pair)) * SHARE + part, units - 1u);
        (*ahead)[i] = load_unit(0u, WIDTH * before + channel * units + unit, 0u);
    }
}

// What this thread stages for AHEAD steps of the tokens; `places` are the first vec4s of the hidden vectors of each pair.
fn bring(first: u32, thread: u32, places: vec4<u32>, tokens: array<u32, SPANS>) -> Brought {
    var token_of = tokens;
    var brought: Brought;
    for (var b = 0u; b < BRINGS; b++) {
        let index = thread + b * THREADS;
        let step = first + index / (SHARE * PARTS * SPANS);
        if index < AHEAD * SHARE * PARTS * SPANS && step < STEPS {
            let pair = pair_of(step);
            let rank = of_pair(vec4(RANK_0, RANK_1, RANK_2, RANK_3), pair);
            let unit = (step - first_step(pair)) * SHARE + index % SHARE;
            let quad = unit * PARTS + index / SHARE % PARTS;
            if quad * 4u < rank {
                let token = token_of[index / (SHARE * PARTS) % SPANS];
                let value = hidden_quad(of_pair(places, pair) + token * ((rank + 7u) / 8u * 2u) + quad);
                // What lies past the rank is not a number of ours.
                brought[b] = select(vec4(0.0), value, vec4(quad * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(rank));
            }
        }
    }
    return brought;
}

fn stage(thread: u32, brought: Brought) {
    var values = brought;
    for (var b = 0u; b < BRINGS; b++) {
        let index = thread + b * THREADS;
        if index < STAGED {
            staged[index] = values[b];
        }
    }
}

// One sum after the other, so that each is one fused multiply-add.
fn dot_onto(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return a.w * b.w + (a.z * b.z + (a.y * b.y + (a.x * b.x + sum)));
}

// The four products for the tokens, known to all threads of a row. The first steps' weights are in `ahead`, and their
// hidden vectors staged but for a barrier. Called by the whole workgroup.
fn up_projections(
    channel: u32,
    thread: u32,
    ahead: ptr<function, Ahead>,
    places: vec4<u32>,
    tokens: array<u32, SPANS>,
) -> array<vec4<f32>, SPANS> {
    let part = thread % SHARE;
    var sums: array<vec4<f32>, SPANS>;
    for (var first = 0u; first < STEPS; first += AHEAD) {
        if first > 0u {
            load_ahead(first, channel, part, ahead);
            let brought = bring(first, thread, places, tokens);
            workgroupBarrier();
            stage(thread, brought);
        }
        workgroupBarrier();
        for (var i = 0u; i < AHEAD; i++) {
            let pair = pair_of(min(first + i, max(STEPS, 1u) - 1u));
            var values = unit_values((*ahead)[i]);
            for (var n = 0u; n < SPANS; n++) {
                var sum = sums[n][pair];
                for (var p = 0u; p < PARTS; p++) {
                    sum = dot_onto(sum, values[p], staged[((i * SPANS + n) * PARTS + p) * SHARE + part]);
                }
                sums[n][pair] = sum;
            }
        }
    }
    for (var n = 0u; n < SPANS; n++) {
        sums[n] = share_add(sums[n], thread);
    }
    return sums;
}
