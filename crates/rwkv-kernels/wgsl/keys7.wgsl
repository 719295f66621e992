// RWKV-7's two keys of a head, one after the other in y:
//   replacement = k ⊙ (1 + (a − 1) ⊙ k_a)         removal = (k ⊙ k_k) / max(‖k ⊙ k_k‖, 1e-12)
#import lanes/$LANES
#import grid

struct Params {
    // Heads in all tokens, and in one.
    count: u32,
    heads: u32,
    head_size: u32,
    // Between rows, and between the two keys of y, in elements.
    stride: u32,
    block: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> k_k: array<f32>;
@group(0) @binding(4) var<storage, read> k_a: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

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
    var square = 0.0;
    for (var i = lane.index; i < params.head_size; i += lane.count) {
        let removal = k[base + i] * k_k[channel + i];
        square += removal * removal;
    }
    let scale = 1.0 / max(sqrt(lanes_add(square, at.thread)), 1e-12);
    if first + lane.group >= params.count {
        return;
    }
    for (var i = lane.index; i < params.head_size; i += lane.count) {
        let key = k[base + i];
        y[base + i] = key * (1.0 + (a[base + i] - 1.0) * k_a[channel + i]);
        y[params.block + base + i] = key * k_k[channel + i] * scale;
    }
}
