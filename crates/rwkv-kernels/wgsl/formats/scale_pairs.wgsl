// Two f16 a block: a scale and a minimum.
#import formats/half

// A word a block; a row is padded to 16 bytes.
@group(1) @binding(1) var<storage, read> scales: array<u32>;

// Both of `block` of `row`, where a row has `blocks`.
fn scale_pair(row: u32, block: u32, blocks: u32) -> vec2<f32> {
    let words = (blocks + 3u) / 4u * 4u;
    let packed = scales[row * words + block];
    return vec2(half_float(packed), half_float(packed >> 16u));
}

// The word that holds them, as it lies.
fn pair_word(row: u32, block: u32, blocks: u32) -> u32 {
    return scales[row * ((blocks + 3u) / 4u * 4u) + block];
}
