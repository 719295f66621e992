// Layer norm and group norm: each row of x is cut into groups of `width`, and each group is brought to mean 0 and
// variance 1, then scaled and shifted channel by channel. A workgroup a group; the variance is that around the mean
// just found. What a group has is read once, all at once, where the threads' registers hold it; of larger groups the later
// passes find the values in the cache.
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

// Fours of elements that a thread holds: at most four. 0 where a group has more.
override OWN: u32 = 0u;

// Elements of four SIZE apart: their places in the group, and whether they are there.
fn places(thread: u32, four: u32) -> vec4<u32> {
    return vec4(thread + 4u * four * SIZE) + vec4(0u, SIZE, 2u * SIZE, 3u * SIZE);
}

fn total(value: vec4<f32>) -> f32 {
    return (value.x + value.y) + (value.z + value.w);
}

fn norm_held(base: u32, channel: u32, at: Invocation) {
    var sum = vec4(0.0);
#repeat i 4
    let place_$i = places(at.thread, u32($i));
    let own_$i = vec4(OWN > u32($i)) & (place_$i < vec4(params.width));
    // Past the end the last one again: no branch stands between two loads.
    let at_$i = min(place_$i, vec4(params.width - 1u));
    var x_$i: vec4<f32>;
    var weight_$i: vec4<f32>;
    var bias_$i: vec4<f32>;
    if OWN > u32($i) {
        x_$i = vec4(x[base + at_$i.x], x[base + at_$i.y], x[base + at_$i.z], x[base + at_$i.w]);
        let c = vec4(channel) + at_$i;
        weight_$i = vec4(weight[c.x], weight[c.y], weight[c.z], weight[c.w]);
        bias_$i = vec4(bias[c.x], bias[c.y], bias[c.z], bias[c.w]);
    }
    sum += select(vec4(0.0), x_$i, own_$i);
#endrepeat
    let mean = workgroup_add(total(sum), at) / f32(params.width);
    var square = vec4(0.0);
#repeat i 4
    let apart_$i = x_$i - mean;
    square += select(vec4(0.0), apart_$i * apart_$i, own_$i);
#endrepeat
    let variance = workgroup_add(total(square), at) / f32(params.width);
    let scale = 1.0 / sqrt(variance + params.epsilon);
#repeat i 4
    let normed_$i = apart_$i * scale * weight_$i + bias_$i;
#repeat c 4
    if own_$i[$c] {
        y[base + place_$i[$c]] = normed_$i[$c];
    }
#endrepeat
#endrepeat
}

fn norm_again(base: u32, channel: u32, at: Invocation) {
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

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    if item >= params.count {
        return;
    }
    let channel = item % params.groups * params.width;
    let base = item / params.groups * params.stride + channel;
    if OWN > 0u {
        norm_held(base, channel, at);
    } else {
        norm_again(base, channel, at);
    }
}
