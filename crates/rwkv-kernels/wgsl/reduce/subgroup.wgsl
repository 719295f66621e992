// Sums and maxima over a workgroup of SIZE threads: subgroups first, then their results.
const SIZE: u32 = $SIZE;

// Room for two of each subgroup, which has four threads or more.
var<workgroup> partial: array<f32, SIZE / 2u>;

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) group: u32,
    @builtin(num_subgroups) groups: u32,
}

// The sum of `value` over the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_add(value: f32, at: Invocation) -> f32 {
    let sum = subgroupAdd(value);
    workgroupBarrier();
    if at.lane == 0u {
        partial[at.group] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < at.groups; i++) {
        total += partial[i];
    }
    return total;
}

// As workgroup_add, of two at once.
fn workgroup_add2(value: vec2<f32>, at: Invocation) -> vec2<f32> {
    let sum = subgroupAdd(value);
    workgroupBarrier();
    if at.lane == 0u {
        partial[2u * at.group] = sum.x;
        partial[2u * at.group + 1u] = sum.y;
    }
    workgroupBarrier();
    var total = vec2(0.0);
    for (var i = 0u; i < at.groups; i++) {
        total += vec2(partial[2u * i], partial[2u * i + 1u]);
    }
    return total;
}

// The largest `value` of the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_max(value: f32, at: Invocation) -> f32 {
    let largest = subgroupMax(value);
    workgroupBarrier();
    if at.lane == 0u {
        partial[at.group] = largest;
    }
    workgroupBarrier();
    var all = partial[0];
    for (var i = 1u; i < at.groups; i++) {
        all = max(all, partial[i]);
    }
    return all;
}
