// Lanes that work on one row together, without subgroup operations: 32 threads and workgroup memory.
override WORKGROUP: u32 = 128u;
const LANES: u32 = 32u;

#import invocation
#import lanes/lane

fn lane_of(at: Invocation) -> Lane {
    return Lane(at.thread % LANES, LANES, at.thread / LANES, WORKGROUP / LANES);
}

var<workgroup> partial: array<f32, WORKGROUP>;

// The sum of `value` over the lanes of a row, known to all of them. Called by the whole workgroup.
fn lanes_add(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    partial[thread] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread % LANES < half {
            partial[thread] += partial[thread + half];
        }
    }
    workgroupBarrier();
    return partial[thread / LANES * LANES];
}
