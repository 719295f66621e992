// Rows of f32 rounded to f16, each times a power of two (halves.wgsl). A row is params.stride units of four.
//
// A row is looked at twice; what threads hold in registers is loaded once, and all of it at once.
enable f16;
#import invocation
#import grid
#import halves

struct Params {
    rows: u32,
    cols: u32,
    // Units of four from one row to the next, of f32 and of f16.
    x_stride: u32,
    stride: u32,
    // As in norm_shift_halves.wgsl; rows are `x_stride` apart in a slice, too.
    slices: u32,
    slice: u32,
    product_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// What is rounded, or sums of a product's slices, of which it is a function.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> halves: array<vec4<f16>>;
#ifdef X_SLICES
#import activation

@group(0) @binding(3) var<storage, read> product_x: array<vec4<f16>>;

// Units of four of what others keep before the sums.
const COUNTS: u32 = 256u;

fn value_of(row: u32, part: u32) -> vec4<f32> {
    let first = COUNTS + row * params.x_stride + part;
    var sum = vec4(0.0);
    for (var slice = 0u; slice < params.slices; slice += 4u) {
#repeat i 4
        let sum_$i = x[first + select(slice, slice + $i, slice + $i < params.slices) * params.slice];
#endrepeat
#repeat i 4
        sum += select(vec4(0.0), sum_$i, slice + $i < params.slices);
#endrepeat
    }
    let exponent = i32(product_x[(row + 1u) * params.product_stride - 1u].x);
    sum *= power_of_two(exponent);
    return vec4(activate(sum.x), activate(sum.y), activate(sum.z), activate(sum.w));
}
#else
fn value_of(row: u32, part: u32) -> vec4<f32> {
    return x[row * params.x_stride + part];
}
#endif

const SIZE: u32 = $SIZE;
// Units of a row that a thread keeps, at most 16.
override KEPT: u32 = 0u;

// The bits of the largest finite number.
var<workgroup> largest: atomic<u32>;

// Elements `4 * part ..` of a row, zero past the last column: what lies in the padding is not a number of ours. Without a
// branch, so that nothing waits for it.
fn load_x(row: u32, part: u32) -> vec4<f32> {
    let left = vec4(4u * part) + vec4(0u, 1u, 2u, 3u);
    let value = value_of(row, min(part, (max(params.cols, 1u) - 1u) / 4u));
    return select(vec4(0.0), value, left < vec4(params.cols));
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let row = flat_workgroup(at);
    if row >= params.rows {
        return;
    }
    if at.thread == 0u {
        atomicStore(&largest, 0u);
    }
#repeat i 16
    var kept_$i = vec4(0.0);
    if $i < KEPT {
        kept_$i = load_x(row, $i * SIZE + at.thread);
    }
#endrepeat
    workgroupBarrier();
    var most = 0u;
#repeat i 16
    most = max(most, finite_bits(kept_$i));
#endrepeat
    for (var part = KEPT * SIZE + at.thread; part < (params.cols + 3u) / 4u; part += SIZE) {
        most = max(most, finite_bits(load_x(row, part)));
    }
    atomicMax(&largest, most);
    workgroupBarrier();
    let exponent = exponent_of(atomicLoad(&largest));
    let scale = power_of_two(-exponent);
    let last = params.stride - 1u;
#repeat i 16
    if $i < KEPT && $i * SIZE + at.thread < last {
        halves[row * params.stride + $i * SIZE + at.thread] = vec4<f16>(kept_$i * scale);
    }
#endrepeat
    for (var part = KEPT * SIZE + at.thread; part < last; part += SIZE) {
        halves[row * params.stride + part] = vec4<f16>(load_x(row, part) * scale);
    }
    if at.thread == 0u {
        halves[row * params.stride + last] = vec4(f16(exponent));
    }
}
