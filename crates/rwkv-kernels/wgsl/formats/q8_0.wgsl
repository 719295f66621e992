// ggml's Q8_0, quants and scales apart: sixteen signed bytes to 16 bytes, one f16 scale for two units.
const UNIT: u32 = 16u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;
// Two f16 scales a word; a row of scales is padded to 16 bytes.
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn quants(packed: u32) -> vec4<f32> {
    let bytes = vec4<i32>(vec4(packed << 24u, packed << 16u, packed << 8u, packed));
    return vec4<f32>(bytes >> vec4(24u));
}

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let blocks = units / 2u;
    let block = unit / 2u;
    let words = (blocks + 7u) / 8u * 4u;
    let pair = unpack2x16float(scales[row * words + block / 2u]);
    let scale = select(pair.x, pair.y, (block & 1u) == 1u);
    let packed = weights[row * units + unit];
    return array<vec4<f32>, PARTS>(
        scale * quants(packed.x),
        scale * quants(packed.y),
        scale * quants(packed.z),
        scale * quants(packed.w),
    );
}
