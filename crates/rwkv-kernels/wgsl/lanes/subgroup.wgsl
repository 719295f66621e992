// Lanes that work on one row together: a subgroup, whatever its size is here.
const WORKGROUP: u32 = 128u;

// The sum of `value` over the lanes of a row, known to all of them.
fn lanes_add(value: f32, thread: u32) -> f32 {
    return subgroupAdd(value);
}
