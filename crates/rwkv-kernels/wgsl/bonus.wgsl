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
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#ifdef LANES_SUBGROUP
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) group: u32,
    @builtin(num_subgroups) groups: u32,
#endif
) {
#ifdef LANES_PLAIN
    let lane = thread % LANES;
    let lanes = LANES;
    let group = thread / LANES;
    let groups = WORKGROUP / LANES;
#endif
    let first = flat_workgroup(workgroup, workgroups) * groups;
    if first >= params.count {
        return;
    }
    let at = min(first + group, params.count - 1u);
    let channel = at % params.heads * params.head_size;
    let base = at / params.heads * params.stride + channel;
    var sum = 0.0;
    for (var i = lane; i < params.head_size; i += lanes) {
        sum += r[base + i] * k[base + i] * r_k[channel + i];
    }
    let bonus = lanes_add(sum, thread);
    if first + group >= params.count {
        return;
    }
    for (var i = lane; i < params.head_size; i += lanes) {
        y[base + i] = x[base + i] + bonus * v[base + i];
    }
}
