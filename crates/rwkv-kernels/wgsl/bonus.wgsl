// y = x + (Σ r ⊙ k ⊙ r_k) v, head by head: what the current token adds past the state.
#import lanes/$LANES
#import grid

struct Params {
    count: u32,
    heads: u32,
    head_size: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> r: array<f32>;
@group(0) @binding(3) var<storage, read> k: array<f32>;
@group(0) @binding(4) var<storage, read> v: array<f32>;
@group(0) @binding(5) var<storage, read> r_k: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let first = flat_workgroup(at) * lane.groups;
    if first >= params.count {
        return;
    }
    let item = min(first + lane.group, params.count - 1u);
    let channel = item % params.heads * params.head_size;
    let base = item / params.heads * params.stride + channel;
    var sum = 0.0;
    for (var i = lane.index; i < params.head_size; i += lane.count) {
        sum += r[base + i] * k[base + i] * r_k[channel + i];
    }
    let bonus = lanes_add(sum, at.thread);
    if first + lane.group >= params.count {
        return;
    }
    for (var i = lane.index; i < params.head_size; i += lane.count) {
        y[base + i] = x[base + i] + bonus * v[base + i];
    }
}
