//! `NF4` and `SF4`: blocks of 32 to 256 codes of 4 bits into a table, `x = scale · TABLE[q]`. An f16 scale, then codes:
//! element 2 i in the low half of byte i, element 2 i + 1 in the high.

use super::{Block, WeightFormat};
use half::f16;

pub(super) struct Codebook {
    block: Block,
    name: &'static str,
    table: &'static [f32; 16],
}

/// Quantiles of the normal distribution, scaled to −1 … 1 with an exact zero (Dettmers et al. 2023, "QLoRA", appendix E).
pub(super) static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Quantiles of Student's t-distribution with 5 degrees of freedom, scaled likewise (Dotzel et al. 2024, "Learning from
/// Students", table of SF4).
pub(super) static SF4: [f32; 16] = [
    -1.0, -0.628, -0.455, -0.334, -0.237, -0.153, -0.075, 0.0, 0.066, 0.133, 0.205, 0.284, 0.376,
    0.491, 0.657, 1.0,
];

/// NF4 with blocks of this size.
pub(super) fn nf4(block: Block) -> &'static Codebook {
    const fn format(block: Block, name: &'static str) -> Codebook {
        Codebook {
            block,
            name,
            table: &NF4,
        }
    }
    match block {
        Block::B32 => const { &format(Block::B32, "nf4_32") },
        Block::B64 => const { &format(Block::B64, "nf4_64") },
        Block::B128 => const { &format(Block::B128, "nf4_128") },
        Block::B256 => const { &format(Block::B256, "nf4_256") },
    }
}

/// SF4 with blocks of this size.
pub(super) fn sf4(block: Block) -> &'static Codebook {
    const fn format(block: Block, name: &'static str) -> Codebook {
        Codebook {
            block,
            name,
            table: &SF4,
        }
    }
    match block {
        Block::B32 => const { &format(Block::B32, "sf4_32") },
        Block::B64 => const { &format(Block::B64, "sf4_64") },
        Block::B128 => const { &format(Block::B128, "sf4_128") },
        Block::B256 => const { &format(Block::B256, "sf4_256") },
    }
}

impl WeightFormat for Codebook {
    fn name(&self) -> &'static str {
        self.name
    }

    fn block(&self) -> usize {
        self.block.elements()
    }

    fn block_bytes(&self) -> usize {
        2 + self.block.elements() / 2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let values = out.chunks_exact_mut(self.block());
        for (block, values) in blocks.chunks_exact(self.block_bytes()).zip(values) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (byte, pair) in block[2..].iter().zip(values.as_chunks_mut::<2>().0) {
                let at = |q: u8| scale * self.table[usize::from(q)];
                *pair = [at(byte & 0xf), at(byte >> 4)];
            }
        }
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}
