// Sums over a workgroup of SIZE threads through workgroup memory.
const SIZE: u32 = $SIZE;

var<workgroup> partial: array<f32, SIZE>;

struct Thread {
    index: u32,
}

// The sum of `value` over the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_add(value: f32, thread: Thread) -> f32 {
    workgroupBarrier();
    partial[thread.index] = value;
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread.index < half {
            partial[thread.index] += partial[thread.index + half];
        }
    }
    workgroupBarrier();
    return partial[0];
}
