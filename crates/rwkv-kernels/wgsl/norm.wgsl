// Layer norm and group norm: each row of x is cut into groups of `width`, and each group is brought to mean 0 and
// variance 1, then scaled and shifted channel by channel. A workgroup a group; the variance is that around the mean
// just found, in a second pass over values that are in the cache by then.
#import reduce/$LANES
#import grid

struct Params {
    // Groups in all, and in one row.
    count: u32,
    groups: u32,
    width: u32,
    // Between rows, in elements.
    stride: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    if item >= params.count {
        return;
    }
    let channel = item % params.groups * params.width;
    let base = item / params.groups * params.stride + channel;
    var sum = 0.0;
    for (var i = at.thread; i < params.width; i += SIZE) {
        sum += x[base + i];
    }
    let mean = workgroup_add(sum, at) / f32(params.width);
    var square = 0.0;
    for (var i = at.thread; i < params.width; i += SIZE) {
        let d = x[base + i] - mean;
        square += d * d;
    }
    let variance = workgroup_add(square, at) / f32(params.width);
    let scale = 1.0 / sqrt(variance + params.epsilon);
    for (var i = at.thread; i < params.width; i += SIZE) {
        y[base + i] = (x[base + i] - mean) * scale * weight[channel + i] + bias[channel + i];
    }
}
