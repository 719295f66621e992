// Signed bytes and one f16 scale for BLOCK elements: sixteen to 16 bytes. ggml's Q8_0 has blocks of 32.
#import formats/scales

const UNIT: u32 = 16u;
const PARTS: u32 = UNIT / 4u;

override BLOCK: u32 = 32u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn quants(packed: u32) -> vec4<f32> {
    let bytes = vec4<i32>(vec4(packed << 24u, packed << 16u, packed << 8u, packed));
    return vec4<f32>(bytes >> vec4(24u));
}

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let block = unit / (BLOCK / UNIT);
    let word = scales[scale_word(row, block, units / (BLOCK / UNIT))];
    let scale = block_scale(word, block);
    let packed = weights[row * units + unit];
    return array<vec4<f32>, PARTS>(
        scale * quants(packed.x),
        scale * quants(packed.y),
        scale * quants(packed.z),
        scale * quants(packed.w),
    );
}
