// An f16 scale a block.
#import formats/half

// Two a word; a row of scales is padded to 16 bytes.
@group(1) @binding(1) var<storage, read> scales: array<u32>;

// The scale of `block` of `row`, where a row has `blocks`.
fn scale_of(row: u32, block: u32, blocks: u32) -> f32 {
    let words = (blocks + 7u) / 8u * 4u;
    return half_float(scales[row * words + block / 2u] >> ((block & 1u) * 16u));
}

// The word that holds it, as it lies: loads can be under way before anything needs them.
fn scale_word(row: u32, block: u32, blocks: u32) -> u32 {
    return scales[row * ((blocks + 7u) / 8u * 4u) + block / 2u];
}

// The scale of `block` in its word.
fn scale_in(word: u32, block: u32) -> f32 {
    return half_float(word >> ((block & 1u) * 16u));
}
