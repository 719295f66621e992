// As lora_up_coop.wgsl for prompts, in larger tiles, with all that follows the products: y = function(up · hidden + bias), and
// of the value's pair the value mixed with the first layer's by that. Whole tiles of channels.
enable f16;
enable wgpu_cooperative_matrix;
#define TOKENS 128
#define HIGH 2
#define WIDE 4
#ifdef UNITS_8
#define X_LOADS 8
#define W_LOADS 8
#define STEPS 4
#else
#define X_LOADS 4
#define W_LOADS 4
#define STEPS 2
#endif
#define CHANNELS 128
#define THREADS 256
#import lora_up/pairs
#import lora_up/coop
#import decay7
#import sigmoid

// How a pair ends.
struct End {
    // As in activation.wgsl: nothing, sigmoid, or RWKV-7's decay.
    function_code: u32,
    // The first vec4 of its bias in `vectors`, if it has one.
    bias: u32,
    has_bias: u32,
    // The first vec4 of its results.
    y: u32,
}

struct Params {
    tokens: u32,
    padding: u32,
    // Vec4s from one token's results to the next.
    stride: u32,
    // The pair whose result mixes `own_value` and `first_value`.
    mixing: u32,
    pairs: array<Pair, 4>,
    ends: array<End, 4>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> vectors: array<vec4<f32>>;
// This layer's value and the first layer's.
@group(0) @binding(3) var<storage, read> own_value: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> first_value: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;

// Each of eight subgroups has 32 tokens × 64 channels. Its matrices of sums pass through workgroup memory one after the
// other, where its lanes can tell tokens and channels apart.
const STAGE_PITCH: u32 = SIDE + 4u;
var<workgroup> stage: array<f32, THREADS / LANES * SIDE * STAGE_PITCH>;

fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    return vec4(sigmoid(x.x), sigmoid(x.y), sigmoid(x.z), sigmoid(x.w));
}

fn ended(end: End, x: vec4<f32>) -> vec4<f32> {
    if end.function_code == 0u {
        return x;
    }
    let between = sigmoid4(x);
    if end.function_code == 4u {
        return exp(LOWEST_DECAY * between);
    }
    return between;
}

// What a lane's elements of a matrix of sums end with: eight tokens apart, four channels each. It is asked for before the
// matrix ahead of it ends: one after the other, the loads of eight matrices took longer than the products.
struct Onto {
    bias: vec4<f32>,
#repeat e 2
    own_$e: vec4<f32>,
    first_$e: vec4<f32>,
#endrepeat
}

// Of the subgroup's matrix `index`; past the last one nobody looks at it.
fn onto_matrix(end: End, mixes: bool, first_token: u32, first_quad: u32, lane: u32, index: u32) -> Onto {
    let quad = first_quad + index % 4u * (SIDE / 4u) + lane % 4u;
    var onto: Onto;
    if end.has_bias != 0u {
        onto.bias = vectors[end.bias + quad];
    }
    // Between nothing and one, the way is the result.
#repeat e 2
    onto.first_$e = vec4(1.0);
#endrepeat
    if mixes {
        let token = first_token + index / 4u % 2u * SIDE + lane / 4u;
#repeat e 2
        let place_$e = min(token + $e * 8u, params.tokens - 1u) * params.stride + quad;
        onto.own_$e = own_value[place_$e];
        onto.first_$e = first_value[place_$e];
#endrepeat
    }
    return onto;
}

// The staged matrix of the subgroup, whose first token and first vec4 of channels these are.
fn finish_matrix(end: End, onto: Onto, first_token: u32, first_quad: u32, subgroup: u32, lane: u32) {
    let quad = first_quad + lane % 4u;
#repeat e 2
    {
        let row = lane / 4u + $e * 8u;
        let staged = (subgroup * SIDE + row) * STAGE_PITCH + lane % 4u * 4u;
        let sums = vec4(stage[staged], stage[staged + 1u], stage[staged + 2u], stage[staged + 3u]);
        let way = ended(end, sums + onto.bias);
        if first_token + row < params.tokens {
            let place = (first_token + row) * params.stride + quad;
            y[end.y + place] = onto.own_$e + (onto.first_$e - onto.own_$e) * way;
        }
    }
#endrepeat
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
#import lora_up/products
    let end = params.ends[workgroup.z];
    let mixes = workgroup.z == params.mixing;
    let staged = subgroup * SIDE * STAGE_PITCH;
    let own_token = first_token + token;
    let own_quad = (first_channel + channel) / 4u;
    var onto = onto_matrix(end, mixes, own_token, own_quad, lane, 0u);
    // Names of their own: naga 30 needs expressions before the store that uses them.
#repeat i $HIGH
#repeat j $WIDE
    let after_$i$j = onto_matrix(end, mixes, own_token, own_quad, lane, $i * $WIDE + $j + 1u);
    let total_$i$j = sum_$i$j;
    workgroupBarrier();
    coopStoreT(total_$i$j, &stage[staged], STAGE_PITCH);
    workgroupBarrier();
    finish_matrix(end, onto, own_token + $i * SIDE, own_quad + $j * (SIDE / 4u), subgroup, lane);
    onto = after_$i$j;
#endrepeat
#endrepeat
}
