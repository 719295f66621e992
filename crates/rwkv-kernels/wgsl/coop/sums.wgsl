// Sums of one slice of the columns, for matmul_sum.wgsl: slice by slice a matrix of whole tiles, after the counts that
// other kernels have in this buffer.

@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

const COUNTS: u32 = 1024u;
