// RWKV-7's time mix of one token from its projections to the residual stream: step/wkv7, and each head's share of the
// output projection, x += W[:, head] y[head].
//
// A head has PARTS workgroups, which all do its recurrence, and then some rows of the output each: no other workgroup needs
// what the recurrence made. What they add to x are sums over their own columns only, so that the order in which workgroups
// add theirs, and the last bits of x with it, differ from run to run.
//
// The last workgroup of a head to have read its state writes it: what that rests on is in sparse_matvec.wgsl.
#import step/wkv7

// The residual stream.
@group(0) @binding(7) var<storage, read_write> x: array<atomic<f32>>;
// A word a head counts the workgroups that have read its state, 0 between dispatches.
@group(0) @binding(8) var<storage, read_write> readers: array<atomic<u32>>;
// The output by rows, in units of eight halves.
@group(2) @binding(0) var<storage, read> output: array<vec4<u32>>;

override OUTPUT_PARTS: u32 = 1u;
// Rows of a workgroup.
override PART_ROWS: u32 = 1u;
// Units of a row, and those before the first.
override OUTPUT_UNITS: u32 = 1u;
override OUTPUT_BASE: u32 = 0u;

// Threads that share a row of the output, an eight of the head each, and rows that all make at once.
const ROW_THREADS: u32 = HEAD / 8u;
const STEP_ROWS: u32 = THREADS / ROW_THREADS;

// Weights of the recurrence that a thread has under way at most beside those of the output: both take four registers each,
// of the 64 that a thread of 1,024 has on large GPUs.
const MOST_AHEAD: u32 = 5u;

var<workgroup> made: array<f32, HEAD>;
var<workgroup> earlier: u32;

fn emit(token: u32, head: u32, row: u32, value: f32) {
    made[row] = value;
}

fn state_read() {
    if OUTPUT_PARTS > 1u {
        storageBarrier();
    }
}

fn count_reader(head: u32, thread: u32) {
    if OUTPUT_PARTS > 1u && thread == 0u {
        earlier = atomicAdd(&readers[head], 1u);
    }
}

fn keeps_state(head: u32, thread: u32) -> bool {
    if OUTPUT_PARTS == 1u {
        return true;
    }
    let last = earlier == OUTPUT_PARTS - 1u;
    if last {
        storageBarrier();
        if thread == 0u {
            atomicStore(&readers[head], 0u);
        }
    }
    return last;
}

// Eights of four rows.
struct Four {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

fn load_row(row: u32, end: u32, unit: u32) -> vec4<u32> {
    return output[(OUTPUT_BASE + min(row, end - 1u)) * OUTPUT_UNITS + unit];
}

// Rows past the end are the last one again: no branch that is not known beforehand stands between two loads.
fn load_rows(row: u32, end: u32, unit: u32) -> Four {
    var rows: Four;
    rows.a = load_row(row, end, unit);
    if PART_ROWS > STEP_ROWS {
        rows.b = load_row(row + STEP_ROWS, end, unit);
    }
    if PART_ROWS > 2u * STEP_ROWS {
        rows.c = load_row(row + 2u * STEP_ROWS, end, unit);
    }
    if PART_ROWS > 3u * STEP_ROWS {
        rows.d = load_row(row + 3u * STEP_ROWS, end, unit);
    }
    return rows;
}

fn eight_product(packed: vec4<u32>, near: vec4<f32>, far: vec4<f32>) -> f32 {
    return dot(vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)), near)
        + dot(vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)), far);
}

// The sums of four rows over the threads of a row: the thread whose number there is n has that of `summed_row(n)`.
fn sum_rows(sums: vec4<f32>, place: u32) -> f32 {
    let odd = (place & 1u) != 0u;
    let two = select(sums.xy, sums.zw, odd) + subgroupShuffleXor(select(sums.zw, sums.xy, odd), 1u);
    let second = (place & 2u) != 0u;
    var sum = select(two.x, two.y, second) + subgroupShuffleXor(select(two.y, two.x, second), 2u);
    for (var apart = 4u; apart < ROW_THREADS; apart *= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    return sum;
}

fn summed_row(place: u32) -> u32 {
    return (place & 1u) * 2u + (place >> 1u & 1u);
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let head = item % HEADS;
    let part = item / HEADS;
    let thread = thread_of(at);
    let place = thread % ROW_THREADS;
    // Past the head's last eight, what was made is zero, and an eight that is there serves.
    let eight = min(place, HEAD_SIZE / 8u - 1u);
    let unit = head * (HEAD_SIZE / 8u) + eight;
    let end = min((part + 1u) * PART_ROWS, WIDTH);
    var row = part * PART_ROWS + thread / ROW_THREADS;
    // Under way while the recurrence is made, where its own weights leave registers.
    var rows: Four;
    if AHEAD <= MOST_AHEAD {
        rows = load_rows(row, end, unit);
    }
    time_mix(thread, head, 0u);
    workgroupBarrier();
    if AHEAD > MOST_AHEAD {
        rows = load_rows(row, end, unit);
    }
    let here = in_page(params.page, spans[0].slot);
    let made_here = place * 8u < HEAD_SIZE;
    let first = 8u * eight;
    let near = vec4(made[first], made[first + 1u], made[first + 2u], made[first + 3u]);
    let far = vec4(made[first + 4u], made[first + 5u], made[first + 6u], made[first + 7u]);
    var left = (end - part * PART_ROWS + 4u * STEP_ROWS - 1u) / (4u * STEP_ROWS);
    loop {
        let sums = vec4(
            eight_product(rows.a, near, far),
            eight_product(rows.b, near, far),
            eight_product(rows.c, near, far),
            eight_product(rows.d, near, far),
        );
        let sum = sum_rows(select(vec4(0.0), sums, made_here), place);
        let own = row + summed_row(place) * STEP_ROWS;
        if here && place < 4u && own < end {
            atomicAdd(&x[own], sum);
        }
        row += 4u * STEP_ROWS;
        left -= 1u;
        if left == 0u {
            break;
        }
        // Not before: a workgroup of 1,024 threads has no registers for two of them.
        rows = load_rows(row, end, unit);
    }
}
