// Sums over a workgroup of SIZE threads: subgroups first, then their results.
const SIZE: u32 = $SIZE;

var<workgroup> partial: array<f32, SIZE / 4u>;

struct Thread {
    index: u32,
    lane: u32,
    group: u32,
    groups: u32,
}

// The sum of `value` over the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_add(value: f32, thread: Thread) -> f32 {
    let sum = subgroupAdd(value);
    workgroupBarrier();
    if thread.lane == 0u {
        partial[thread.group] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < thread.groups; i++) {
        total += partial[i];
    }
    return total;
}
