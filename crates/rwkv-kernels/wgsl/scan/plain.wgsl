// Running sums over a workgroup of SIZE threads through workgroup memory (Hillis and Steele).
#import reduce/plain

// The thread's place in the order of the sums.
fn rank_of(at: Invocation) -> u32 {
    return at.thread;
}

// The sum of `value` over the ranks up to the thread's own, and over all. Called by the whole workgroup.
fn workgroup_scan(value: f32, at: Invocation) -> vec2<f32> {
    workgroupBarrier();
    partial[at.thread] = value;
    for (var step = 1u; step < SIZE; step *= 2u) {
        workgroupBarrier();
        var sum = partial[at.thread];
        if at.thread >= step {
            sum += partial[at.thread - step];
        }
        workgroupBarrier();
        partial[at.thread] = sum;
    }
    workgroupBarrier();
    return vec2<f32>(partial[at.thread], partial[SIZE - 1u]);
}
