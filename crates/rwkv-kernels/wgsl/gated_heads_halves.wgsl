// The end of RWKV-7's time mix, of rows that a matrix product alone reads: each head's norm, what the current token adds
// past the state, and the gate, left in f16 (halves.wgsl). A workgroup a token; a thread keeps PARTS units of four.
enable f16;
#import reduce/$LANES
#import grid
#import halves

// Widths, strides and places count units of four.
struct Params {
    tokens: u32,
    width: u32,
    // Between rows of the inputs, and of y.
    stride: u32,
    half_stride: u32,
    // Where in `vectors` the bonus, the norm's weight and its bias begin.
    bonus: u32,
    weight: u32,
    bias: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> r: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> vectors: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f16>>;

// Units of a head.
override HEAD: u32 = 16u;

// Of each unit of the row: its sum, then its squares', and what it adds to r · k.
var<workgroup> sums: array<vec2<f32>, SIZE * $PARTS>;

fn sum_of(value: vec4<f32>) -> f32 {
    return value.x + value.y + value.z + value.w;
}

// The sums of the head that a unit is in.
fn head_sums(unit: u32) -> vec2<f32> {
    let first = unit / HEAD * HEAD;
    var sum = vec2(0.0);
    for (var i = 0u; i < HEAD; i++) {
        sum += sums[first + i];
    }
    return sum;
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let token = flat_workgroup(at);
    if token >= params.tokens {
        return;
    }
    let row = token * params.stride;
    let count = f32(4u * HEAD);
#repeat p $PARTS
    let unit_$p = at.thread + $p * SIZE;
    let there_$p = unit_$p < params.width;
    let channel_$p = min(unit_$p, params.width - 1u);
    let x_$p = x[row + channel_$p];
    let v_$p = v[row + channel_$p];
    let gate_$p = gate[row + channel_$p];
    let both_$p = r[row + channel_$p] * k[row + channel_$p] * vectors[params.bonus + channel_$p];
    let weight_$p = vectors[params.weight + channel_$p];
    let bias_$p = vectors[params.bias + channel_$p];
#endrepeat
#repeat p $PARTS
    sums[unit_$p] = vec2(sum_of(x_$p), sum_of(both_$p));
#endrepeat
    workgroupBarrier();
#repeat p $PARTS
    let head_$p = head_sums(channel_$p);
    let centered_$p = x_$p - head_$p.x / count;
#endrepeat
    workgroupBarrier();
#repeat p $PARTS
    sums[unit_$p] = vec2(sum_of(centered_$p * centered_$p), 0.0);
#endrepeat
    workgroupBarrier();
    var most = 0u;
#repeat p $PARTS
    let scale_$p = 1.0 / sqrt(head_sums(channel_$p).x / count + params.epsilon);
    let value_$p = (centered_$p * scale_$p * weight_$p + bias_$p + head_$p.y * v_$p) * gate_$p;
    most = max(most, select(0u, finite_bits(value_$p), there_$p));
#endrepeat
    let exponent = exponent_of(bitcast<u32>(workgroup_max(bitcast<f32>(most), at)));
    let power = power_of_two(-exponent);
    let to = token * params.half_stride;
    let last = params.half_stride - 1u;
#repeat p $PARTS
    if there_$p {
        y[to + unit_$p] = vec4<f16>(value_$p * power);
    }
#endrepeat
    for (var part = params.width + at.thread; part < last; part += SIZE) {
        y[to + part] = vec4<f16>();
    }
    if at.thread == 0u {
        y[to + last] = vec4(f16(exponent));
    }
}
