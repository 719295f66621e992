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
#import stream/$CODES

const MAX_ROWS: u32 = 4u;
const MAX_UNROLL: u32 = 4u;

override ROWS: u32 = 1u;
override UNROLL: u32 = 1u;
override SPLIT: u32 = 1u;
// Units of a row of the bound weights.
override UNITS: u32 = 1u;
// A place for each row of a block and subgroup of its team.
override PARTIALS: u32 = 1u;

var<workgroup> partials: array<f32, PARTIALS>;

// Which rows a workgroup makes, and of which units.
struct Work {
    // The row of the bound weights that is row 0 here, and how many there are.
    base: u32,
    rows: u32,
    // The first block, and the distance to the next.
    block: u32,
    stride: u32,
    // The first of the SLICE units.
    unit: u32,
}

struct Team {
    // This lane's place in its team, and the lanes of a team.
    member: u32,
    members: u32,
    // The team's place among those of the workgroup, and the subgroups that it has.
    number: u32,
    teams: u32,
    split: u32,
}

fn team_of(lane: Lane) -> Team {
    // Subgroups may be larger, and so fewer, than the host expected.
    let split = min(SPLIT, lane.groups);
    return Team(
        lane.index + lane.group % split * lane.count,
        lane.count * split,
        lane.group / split,
        lane.groups / split,
        split,
    );
}

alias Units = array<Unit, MAX_ROWS * MAX_UNROLL>;

// What a lane needs of a block for one step. Past an end, the last unit or row again: no branch stands between two loads.
fn load_step(work: Work, team: Team, block: u32, step: u32) -> Units {
    var raw: Units;
    let row = (block * team.teams + team.number) * ROWS;
    for (var u = 0u; u < UNROLL; u++) {
        let unit = work.unit + min((step * UNROLL + u) * team.members + team.member, SLICE - 1u);
        for (var r = 0u; r < ROWS; r++) {
            raw[u * MAX_ROWS + r] = load_unit(work.base + min(row + r, work.rows - 1u), unit, UNITS);
        }
    }
    return raw;
}

// All rows of `work`, the first units of which are `first`. Called by the whole workgroup, when x is there.
fn make_rows(work: Work, lane: Lane, team: Team, thread: u32, first: Units) {
    var raw = first;
    let steps = (SLICE + team.members * UNROLL - 1u) / (team.members * UNROLL);
    let block_rows = team.teams * ROWS;
    for (var block = work.block; block * block_rows < work.rows; block += work.stride) {
        var sums: array<f32, MAX_ROWS>;
        for (var step = 0u; step < steps; step++) {
            var next: Units;
            if step + 1u < steps {
                next = load_step(work, team, block, step + 1u);
            } else if (block + work.stride) * block_rows < work.rows {
                next = load_step(work, team, block + work.stride, 0u);
            }
            for (var u = 0u; u < UNROLL; u++) {
                let unit = (step * UNROLL + u) * team.members + team.member;
                if unit < SLICE {
                    let x = unit_x(unit);
                    for (var r = 0u; r < ROWS; r++) {
                        sums[r] += unit_product(raw[u * MAX_ROWS + r], x, work.unit + unit);
                    }
                }
            }
            raw = next;
        }
        for (var r = 0u; r < ROWS; r++) {
            sums[r] = subgroupAdd(sums[r]);
        }
        if SPLIT == 1u {
            var sum = sums[0];
            for (var r = 1u; r < ROWS; r++) {
                sum = select(sum, sums[r], lane.index == r);
            }
            let row = (block * team.teams + team.number) * ROWS + lane.index;
            if lane.index < ROWS && row < work.rows {
                emit(row, sum);
            }
        } else {
            if lane.index == 0u {
                for (var r = 0u; r < ROWS; r++) {
                    partials[(team.number * ROWS + r) * team.split + lane.group % team.split] = sums[r];
                }
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
