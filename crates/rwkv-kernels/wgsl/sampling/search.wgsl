// Where running sums over a workgroup reach a goal: among the threads, and among a few columns with an element for each
// thread.
#import scan/$LANES

// Wide bins of gaps, and stretches of ids. Their sums lie [column][thread].
const COLUMNS: u32 = 4u;

var<workgroup> columns: array<f32, COLUMNS * SIZE>;
var<workgroup> first_place: atomic<u32>;
var<workgroup> last_place: atomic<u32>;
var<workgroup> shared_place: u32;
var<workgroup> shared_sums: vec2<f32>;

struct Found {
    rank: u32,
    // The sum before that rank, and the value there.
    before: f32,
    value: f32,
}

// The first rank that has a value and whose running sum reaches the target (or passes it). Rounding may leave all sums
// short of it: then it is the last rank that has a value.
fn search(value: f32, running: f32, goal: f32, passes: bool, at: Invocation) -> Found {
    let rank = rank_of(at);
    workgroupBarrier();
    if at.thread == 0u {
        atomicStore(&first_place, NONE);
        atomicStore(&last_place, 0u);
    }
    workgroupBarrier();
    if value > 0.0 {
        atomicMax(&last_place, rank);
        if running > goal || running == goal && !passes {
            atomicMin(&first_place, rank);
        }
    }
    workgroupBarrier();
    let place = min(atomicLoad(&first_place), atomicLoad(&last_place));
    if rank == place {
        shared_place = place;
        shared_sums = vec2<f32>(running - value, value);
    }
    let found = workgroupUniformLoad(&shared_place);
    let sums = workgroupUniformLoad(&shared_sums);
    return Found(found, sums.x, sums.y);
}

// The sum of the columns' four elements that the thread's rank stands for: ranks go through the columns in their order.
fn column_part(at: Invocation) -> f32 {
    let first = rank_of(at) * COLUMNS;
    var sum = 0.0;
    for (var i = 0u; i < COLUMNS; i++) {
        sum += columns[first + i];
    }
    return sum;
}

// The sum before a column. `running` and `part` are those of the scan of `column_part`.
fn before_column(column: u32, running: f32, part: f32, at: Invocation) -> f32 {
    workgroupBarrier();
    if rank_of(at) == column * (SIZE / COLUMNS) {
        shared_sums = vec2<f32>(running - part, 0.0);
    }
    return workgroupUniformLoad(&shared_sums).x;
}
