// RWKV-7's time mix of one token from its projections to the residual stream: step/wkv7, and each head's share of the
// output projection, x += W[:, head] y[head].
//
// A head has PARTS workgroups, which all do its recurrence, and then some rows of the output each: no other workgroup needs
// what the recurrence made. What they add to x are sums over their own columns only, so that the order in which workgroups
// add theirs, and the last bits of x with it, differ from run to run.
//
// The last workgroup of a head to have read its state writes it: what that rests on is in sparse_matvec.wgsl.
#import step/wkv7
#define SLICED $OUTPUT
#ifdef OUTPUT_F16
#define SLICED_CODES float
#else
#define SLICED_CODES integer
#endif
#import stream/slice as slice

// The residual stream.
@group(0) @binding(7) var<storage, read_write> x: array<atomic<f32>>;
// A word a head counts the workgroups that have read its state, 0 between dispatches.
@group(0) @binding(8) var<storage, read_write> readers: array<atomic<u32>>;

override OUTPUT_PARTS: u32 = 1u;
// Rows of a workgroup.
override PART_ROWS: u32 = 1u;

// Weights of the recurrence that a thread has under way at most where those of the output are too: they take registers, of
// which a thread of 1,024 has 64 on large GPUs.
override MOST_AHEAD: u32 = 0u;

var<workgroup> earlier: u32;

// By row. No vectors: several threads would write parts of one, and some may write old parts back.
var<workgroup> made: array<f32, HEAD>;

fn emit(token: u32, head: u32, row: u32, value: f32) {
    made[row] = value;
}

fn four_made(first: u32) -> vec4<f32> {
    return vec4(made[first], made[first + 1u], made[first + 2u], made[first + 3u]);
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

fn add_sum(row: u32, sum: f32) {
    atomicAdd(&x[row], sum);
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    let head = item % HEADS;
    let part = item / HEADS;
    let thread = thread_of(at);
    let start = part * PART_ROWS;
    let slice = slice_Slice(start, min(start + PART_ROWS, WIDTH), head * slice_SLICE, head);
    var first: slice_FourUnits;
    // Under way while the recurrence is made, where its own weights leave registers.
    if AHEAD <= MOST_AHEAD {
        first = slice_first_four(slice, thread);
    }
    time_mix(thread, head, 0u);
    workgroupBarrier();
    if AHEAD > MOST_AHEAD {
        first = slice_first_four(slice, thread);
    }
    if thread < HEAD_SIZE / 8u {
        slice_stage_eight(0u, thread, four_made(8u * thread), four_made(8u * thread + 4u));
    }
    workgroupBarrier();
    if in_page(params.page, spans[0].slot) {
        slice_multiply(first, slice, thread);
    }
}
