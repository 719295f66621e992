// Running sums over a workgroup of SIZE threads: subgroups first, then their results.
#import reduce/subgroup

// The thread's place in the order of the sums. Nothing promises that threads are numbered along subgroups.
fn rank_of(at: Invocation) -> u32 {
    return at.group * (SIZE / at.groups) + at.lane;
}

// The sum of `value` over the ranks up to the thread's own, and over all. Called by the whole workgroup.
fn workgroup_scan(value: f32, at: Invocation) -> vec2<f32> {
    let running = subgroupInclusiveAdd(value);
    workgroupBarrier();
    if at.lane == SIZE / at.groups - 1u {
        partial[at.group] = running;
    }
    workgroupBarrier();
    var before = 0.0;
    var total = 0.0;
    for (var i = 0u; i < at.groups; i++) {
        if i < at.group {
            before += partial[i];
        }
        total += partial[i];
    }
    return vec2<f32>(before + running, total);
}
