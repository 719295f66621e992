// Which rows a workgroup makes, and of which units.
struct Work {
    // The row of the bound weights that is row 0 here, and how many there are.
    base: u32,
    rows: u32,
    // The first block, and the distance to the next.
    block: u32,
    stride: u32,
    // The first unit of its columns.
    unit: u32,
}

// What a lane has under way: four units of one row or several. Members and not an array: compilers keep those in
// registers, whatever the loops around them.
struct Units {
    a: Unit,
    b: Unit,
    c: Unit,
    d: Unit,
}
