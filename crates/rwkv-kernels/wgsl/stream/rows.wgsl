// Dot products of rows of a packed matrix with one x: what the matrix-vector kernels of a single token do. The weights
// stream through registers: while a thread multiplies some units the next ones are under way, from one block of rows to
// the next, and the first ones from before x is there. Nothing depends on when they arrive, so nothing waits.
//
// A workgroup makes blocks of rows, `stride` of them apart. Its subgroups are split into teams of SPLIT; a team makes
// ROWS neighbouring rows together, UNROLL units a lane and row at a time. x lies in workgroup memory (float.wgsl,
// integer.wgsl), the parts of a unit apart from each other, so that neighbouring lanes read neighbouring addresses.
//
// Whoever imports this defines `emit(row, sum)`, which one thread calls for each row.
#import formats/$FORMAT
#import lanes/subgroup
#import lanes/team
#import stream/work
#import stream/$CODES

// ROWS * UNROLL is 1, 2 or 4.
override ROWS: u32 = 1u;
override UNROLL: u32 = 1u;
// Units of a row of the bound weights.
override UNITS: u32 = 1u;
// A place for each row of a block and subgroup of its team.
override PARTIALS: u32 = 1u;

var<workgroup> partials: array<f32, PARTIALS>;

// Unit u of row r is in slot u * ROWS + r.
// Past an end, the last unit or row again: no branch stands between two loads.
fn load_slot(work: Work, team: Team, block: u32, step: u32, slot: u32) -> Unit {
    let row = (block * team.teams + team.number) * ROWS + slot % ROWS;
    let unit = (step * UNROLL + slot / ROWS) * team.members + team.member;
    return load_unit(work.base + min(row, work.rows - 1u), work.unit + min(unit, SLICE - 1u), UNITS);
}

// What a lane needs of a block for one step.
fn load_step(work: Work, team: Team, block: u32, step: u32) -> Units {
    var raw: Units;
    raw.a = load_slot(work, team, block, step, 0u);
    if ROWS * UNROLL > 1u {
        raw.b = load_slot(work, team, block, step, 1u);
    }
    if ROWS * UNROLL > 2u {
        raw.c = load_slot(work, team, block, step, 2u);
        raw.d = load_slot(work, team, block, step, 3u);
    }
    return raw;
}

// Adds the products of one step to the sums of the rows.
fn add_step(work: Work, team: Team, step: u32, raw: Units, sums: vec4<f32>) -> vec4<f32> {
    var all = sums;
    let first = step * UNROLL * team.members + team.member;
    if first < SLICE {
        let x = unit_x(0u, first);
        let unit = work.unit + first;
        all.x += unit_product(raw.a, x, unit);
        if ROWS > 1u {
            all.y += unit_product(raw.b, x, unit);
        }
        if ROWS > 2u {
            all.z += unit_product(raw.c, x, unit);
            all.w += unit_product(raw.d, x, unit);
        }
    }
    if UNROLL > 1u && first + team.members < SLICE {
        let x = unit_x(0u, first + team.members);
        let unit = work.unit + first + team.members;
        if ROWS == 1u {
            all.x += unit_product(raw.b, x, unit);
        } else {
            all.x += unit_product(raw.c, x, unit);
            all.y += unit_product(raw.d, x, unit);
        }
    }
    if UNROLL > 2u && first + 2u * team.members < SLICE {
        let near = first + 2u * team.members;
        all.x += unit_product(raw.c, unit_x(0u, near), work.unit + near);
        let far = near + team.members;
        if far < SLICE {
            all.x += unit_product(raw.d, unit_x(0u, far), work.unit + far);
        }
    }
    return all;
}

// The sums over a subgroup, and of them that of one row.
fn subgroup_sums(sums: vec4<f32>) -> vec4<f32> {
    var all = vec4(subgroupAdd(sums.x), 0.0, 0.0, 0.0);
    if ROWS > 1u {
        all.y = subgroupAdd(sums.y);
    }
    if ROWS > 2u {
        all.z = subgroupAdd(sums.z);
        all.w = subgroupAdd(sums.w);
    }
    return all;
}

fn row_of(sums: vec4<f32>, r: u32) -> f32 {
    return select(select(sums.x, sums.y, r == 1u), select(sums.z, sums.w, r == 3u), r >= 2u);
}

// All rows of `work`, the first units of which are `first`. Called by the whole workgroup, when x is there.
fn make_rows(work: Work, lane: Lane, team: Team, thread: u32, first: Units) {
    var raw = first;
    let steps = (SLICE + team.members * UNROLL - 1u) / (team.members * UNROLL);
    let block_rows = team.teams * ROWS;
    for (var block = work.block; block * block_rows < work.rows; block += work.stride) {
        var sums = vec4(0.0);
        for (var step = 0u; step < steps; step++) {
            // The next block's, or where there is none this one's again.
            var next_block = block;
            var next_step = step + 1u;
            if next_step == steps {
                next_block = select(block, block + work.stride, (block + work.stride) * block_rows < work.rows);
                next_step = 0u;
            }
            let next = load_step(work, team, next_block, next_step);
            sums = add_step(work, team, step, raw, sums);
            raw = next;
        }
        sums = subgroup_sums(sums);
        if SPLIT == 1u {
            let row = (block * team.teams + team.number) * ROWS + lane.index;
            if lane.index < ROWS && row < work.rows {
                emit(row, row_of(sums, lane.index));
            }
        } else {
            if lane.index < ROWS {
                let place = (team.number * ROWS + lane.index) * team.split + lane.group % team.split;
                partials[place] = row_of(sums, lane.index);
            }
            workgroupBarrier();
            let row = block * block_rows + thread;
            if thread < block_rows && row < work.rows {
                var sum = 0.0;
                for (var i = 0u; i < team.split; i++) {
                    sum += partials[thread * team.split + i];
                }
                emit(row, sum);
            }
            workgroupBarrier();
        }
    }
}
