// What every matrix product is told.
struct Params {
    // Rows of this part of the matrix, and the number of the first one in the whole.
    rows: u32,
    first_row: u32,
    // Columns, and the units that hold them.
    cols: u32,
    units: u32,
    tokens: u32,
    // Strides between tokens: in vec4s for x, in elements for y and the residual.
    x_stride: u32,
    y_stride: u32,
    residual_stride: u32,
    // The row of the bound weights that this part's row 0 is.
    base: u32,
    // Units of x that are staged at a time, or all of them; columns that a slice of the product has.
    chunk: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
