// Sums and maxima over a workgroup of SIZE threads through workgroup memory.
const SIZE: u32 = $SIZE;

var<workgroup> partial: array<f32, SIZE>;

#import invocation

// The sum of `value` over the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_add(value: f32, at: Invocation) -> f32 {
    workgroupBarrier();
    partial[at.thread] = value;
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if at.thread < half {
            partial[at.thread] += partial[at.thread + half];
        }
    }
    workgroupBarrier();
    return partial[0];
}

// As workgroup_add, of two at once.
fn workgroup_add2(value: vec2<f32>, at: Invocation) -> vec2<f32> {
    return vec2(workgroup_add(value.x, at), workgroup_add(value.y, at));
}

// The largest `value` of the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_max(value: f32, at: Invocation) -> f32 {
    workgroupBarrier();
    partial[at.thread] = value;
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if at.thread < half {
            partial[at.thread] = max(partial[at.thread], partial[at.thread + half]);
        }
    }
    workgroupBarrier();
    return partial[0];
}
