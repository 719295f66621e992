// Grids of any size: a dimension holds at most 65,535 workgroups, so the host folds a long row into y.
fn flat_workgroup(workgroup: vec3<u32>, workgroups: vec3<u32>) -> u32 {
    return workgroup.y * workgroups.x + workgroup.x;
}
