// Lanes that work on one row together: a subgroup, whatever its size is here.
override WORKGROUP: u32 = 128u;

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) group: u32,
    @builtin(num_subgroups) groups: u32,
}

#import lanes/lane

fn lane_of(at: Invocation) -> Lane {
    return Lane(at.lane, at.lanes, at.group, at.groups);
}

// The sum of `value` over the lanes of a row, known to all of them.
fn lanes_add(value: f32, thread: u32) -> f32 {
    return subgroupAdd(value);
}
