// A thread's place among the lanes of a row, and the row's among those of the workgroup.
struct Lane {
    index: u32,
    count: u32,
    group: u32,
    groups: u32,
}
