// y[i] = x[rows[i]]: the rows whose logits are wanted.
#import invocation
#import grid

struct Params {
    count: u32,
    width: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const SIZE: u32 = 128u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let blocks = (params.width + SIZE - 1u) / SIZE;
    let item = flat_workgroup(at);
    let row = item / blocks;
    let channel = item % blocks * SIZE + at.thread;
    if row >= params.count || channel >= params.width {
        return;
    }
    y[row * params.stride + channel] = x[rows[row] * params.stride + channel];
}
