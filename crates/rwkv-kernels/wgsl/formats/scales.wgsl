// One f16 scale a block, two to a word; a row of them is padded to a whole word.
#import formats/half

fn block_scale(packed: u32, block: u32) -> f32 {
    return half(packed >> (16u * (block & 1u)));
}

fn scale_word(row: u32, block: u32, blocks: u32) -> u32 {
    return row * ((blocks + 1u) / 2u) + block / 2u;
}
