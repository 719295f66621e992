// As lora_up.wgsl, with cooperative matrices, for channels in whole tiles and results that have room for whole tiles of
// tokens. Each of four subgroups has 16 tokens × 32 channels.
enable f16;
enable wgpu_cooperative_matrix;
#define TOKENS 32
#define UNITS 16
#define CHANNELS 64
#define THREADS 128
#define HIGH 1
#define WIDE 2
#define X_LOADS 8
#define W_LOADS 16
#define STEPS 8
#import lora_up/sums
#import lora_up/coop

@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
#import lora_up/products
    // Names of their own: naga 30 needs expressions before the store that uses them.
    let stride = params.stride;
    let place = workgroup.z * params.block + (first_token + token) * stride + first_channel + channel;
#repeat j $WIDE
    let total_0$j = sum_0$j;
    let place_0$j = place + $j * SIDE;
    coopStoreT(total_0$j, &sums[place_0$j], stride);
#endrepeat
}
