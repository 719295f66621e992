// Grids of any size: a dimension holds at most 65,535 workgroups, so the host folds a long row into y.
fn flat_workgroup(at: Invocation) -> u32 {
    return at.workgroup.y * at.workgroups.x + at.workgroup.x;
}
