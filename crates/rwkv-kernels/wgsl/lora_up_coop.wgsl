// As lora_up.wgsl, with cooperative matrices, for channels in whole tiles and results that have room for whole tiles of
// tokens. Each of four subgroups has 16 tokens × 32 channels.
enable f16;
enable wgpu_cooperative_matrix;
#define TOKENS 32
#define UNITS 16
#define CHANNELS 64
#define THREADS 128
#import lora_up/sums
#import lora_up/coop

@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let pair = params.pairs[workgroup.z];
    let first_channel = workgroup.x * CHANNELS;
    let first_token = workgroup.y * TOKENS;
    let token = subgroup / 2u * SIDE;
    let channel = subgroup % 2u * (2u * SIDE);
    let to = thread / QUADS * PITCH + thread % QUADS;
    var sum_00: coop_mat16x16<f32, C>;
    var sum_01: coop_mat16x16<f32, C>;
    {
#repeat i 8
        let x_$i = fetch_x(pair, first_token, 0u, $i * THREADS + thread);
#endrepeat
#repeat i 16
        let w_$i = fetch_w(pair, first_channel, 0u, $i * THREADS + thread);
#endrepeat
#repeat i 8
        x_tile[to + $i * (THREADS / QUADS) * PITCH] = rounded(x_$i);
#endrepeat
#repeat i 16
        w_tile[to + $i * (THREADS / QUADS) * PITCH] = w_$i;
#endrepeat
    }
    workgroupBarrier();
    for (var unit = 0u; unit < pair.units; unit += UNITS) {
        // At the end the last ones are loaded again.
        let next = min(unit + UNITS, pair.units - 1u);
#repeat i 8
        let x_$i = fetch_x(pair, first_token, next, $i * THREADS + thread);
#endrepeat
#repeat i 16
        let w_$i = fetch_w(pair, first_channel, next, $i * THREADS + thread);
#endrepeat
#repeat k 8
        {
            let a = coopLoadT<coop_mat16x16<f16, A>>(
                &x_tile[token * PITCH + $k * (SIDE / 4u)],
                PITCH,
            );
#repeat j 2
            let b$j = coopLoad<coop_mat16x16<f16, B>>(
                &w_tile[(channel + $j * SIDE) * PITCH + $k * (SIDE / 4u)],
                PITCH,
            );
            sum_0$j = coopMultiplyAdd(a, b$j, sum_0$j);
#endrepeat
        }
#endrepeat
        workgroupBarrier();
#repeat i 8
        x_tile[to + $i * (THREADS / QUADS) * PITCH] = rounded(x_$i);
#endrepeat
#repeat i 16
        w_tile[to + $i * (THREADS / QUADS) * PITCH] = w_$i;
#endrepeat
        workgroupBarrier();
    }
    // Names of their own: naga 30 needs expressions before the store that uses them.
    let stride = params.stride;
    let place = workgroup.z * params.block + (first_token + token) * stride + first_channel + channel;
#repeat j 2
    let total_0$j = sum_0$j;
    let place_0$j = place + $j * SIDE;
    coopStoreT(total_0$j, &sums[place_0$j], stride);
#endrepeat
}
