// Dot products of rows of a packed matrix with the x of 2 to 16 tokens, each weight read once: what rows.wgsl does for one
// token. A team of MEMBERS lanes makes four neighbouring rows together, a unit of each a lane and step; those of the next
// step are under way meanwhile. What a unit meets of x is read once for the four rows. Teams are small, so that few steps
// end with adding up what the lanes have, and lanes of several teams read the same x.
//
// x lies in workgroup memory, SLICE units at a time: once for all blocks of rows, or where CHUNKS of them do not fit
// together one after the other, for each block again.
//
// Whoever imports this defines `token_count()`, `stage_chunk(work, chunk, thread)`, which brings x there, and
// `emit(row, token, sum)`.
#import formats/$FORMAT
#import lanes/subgroup
#import stream/work
#import stream/token_sums
#import stream/token_$CODES

// Units of a row of the bound weights.
override UNITS: u32 = 1u;
override CHUNKS: u32 = 1u;
// Whether rows are a whole number of chunks, and those of steps.
override EXACT: bool = false;

fn block_rows() -> u32 {
    return WORKGROUP / MEMBERS * 4u;
}

// What comes when.
struct Step {
    block: u32,
    chunk: u32,
    step: u32,
}

// The one after `at`; past the last, the last block again.
fn step_after(at: Step, work: Work, steps: u32) -> Step {
    if at.step + 1u < steps {
        return Step(at.block, at.chunk, at.step + 1u);
    }
    if at.chunk + 1u < CHUNKS {
        return Step(at.block, at.chunk + 1u, 0u);
    }
    let next = at.block + work.stride;
    return Step(select(at.block, next, next * block_rows() < work.rows), 0u, 0u);
}

// Past an end, the last unit or row again: no branch stands between two loads.
fn load_units(work: Work, place: Place, at: Step) -> Units {
    let unit = min(work.unit + at.chunk * SLICE + at.step * MEMBERS + place.member, UNITS - 1u);
    let row = at.block * block_rows() + place.team * 4u;
    let last = work.rows - 1u;
    return Units(
        load_unit(work.base + min(row, last), unit, UNITS),
        load_unit(work.base + min(row + 1u, last), unit, UNITS),
        load_unit(work.base + min(row + 2u, last), unit, UNITS),
        load_unit(work.base + min(row + 3u, last), unit, UNITS),
    );
}

fn add_tokens(weights: Weights, near: u32, p: u32, sums: ptr<function, Sums>) {
    (*sums).t0 = token_sums((*sums).t0, weights, 0u, near, p);
    (*sums).t1 = token_sums((*sums).t1, weights, 1u, near, p);
    if TOKENS > 2u {
        (*sums).t2 = token_sums((*sums).t2, weights, 2u, near, p);
        (*sums).t3 = token_sums((*sums).t3, weights, 3u, near, p);
    }
    if TOKENS > 4u {
        (*sums).t4 = token_sums((*sums).t4, weights, 4u, near, p);
        (*sums).t5 = token_sums((*sums).t5, weights, 5u, near, p);
        (*sums).t6 = token_sums((*sums).t6, weights, 6u, near, p);
        (*sums).t7 = token_sums((*sums).t7, weights, 7u, near, p);
    }
    if TOKENS > 8u {
        (*sums).t8 = token_sums((*sums).t8, weights, 8u, near, p);
        (*sums).t9 = token_sums((*sums).t9, weights, 9u, near, p);
        (*sums).t10 = token_sums((*sums).t10, weights, 10u, near, p);
        (*sums).t11 = token_sums((*sums).t11, weights, 11u, near, p);
        (*sums).t12 = token_sums((*sums).t12, weights, 12u, near, p);
        (*sums).t13 = token_sums((*sums).t13, weights, 13u, near, p);
        (*sums).t14 = token_sums((*sums).t14, weights, 14u, near, p);
        (*sums).t15 = token_sums((*sums).t15, weights, 15u, near, p);
    }
}

// All rows of `work`, the first units of which are `first`. Called by the whole workgroup; x is there if it is one chunk.
fn make_rows(work: Work, place: Place, thread: u32, first: Units) {
    var raw = first;
    let steps = (SLICE + MEMBERS - 1u) / MEMBERS;
    for (var block = work.block; block * block_rows() < work.rows; block += work.stride) {
        var sums = Sums();
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            if CHUNKS > 1u {
                workgroupBarrier();
                stage_chunk(work, chunk, thread);
                workgroupBarrier();
            }
            for (var step = 0u; step < steps; step++) {
                let next = load_units(work, place, step_after(Step(block, chunk, step), work, steps));
                let near = step * MEMBERS + place.member;
                let unit = work.unit + chunk * SLICE + near;
                if EXACT | ((near < SLICE) & (unit < UNITS)) {
                    add_units(raw, unit, near, &sums);
                }
                raw = next;
            }
        }
        emit_sums(place, block * block_rows() + place.team * 4u, work.rows, &sums);
    }
}
