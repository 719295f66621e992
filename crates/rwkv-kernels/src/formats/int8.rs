//! Signed bytes in blocks of 32 to 256, `x = scale · q`: an f16 scale, then a byte an element. With blocks of 32 it is
//! ggml's `Q8_0`.

use super::{
    Block, WeightFormat,
    grid::Integers,
    scales::with_scales,
    search::{codes, half_bytes},
};
use half::f16;

const GRID: Integers = Integers(-128.0, 127.0);

/// Where the search puts the largest element: every start rounds the others in another way, and the best of some has a
/// tenth less error than the first.
const SHARES: [f32; 4] = [0.985, 0.994, 1.0, 1.003];

pub(super) struct Int8 {
    block: Block,
    name: &'static str,
}

/// The format with blocks of this size.
pub(super) fn of(block: Block) -> &'static Int8 {
    const fn format(block: Block, name: &'static str) -> Int8 {
        Int8 { block, name }
    }
    match block {
        Block::B32 => const { &format(Block::B32, "int8_32") },
        Block::B64 => const { &format(Block::B64, "int8_64") },
        Block::B128 => const { &format(Block::B128, "int8_128") },
        Block::B256 => const { &format(Block::B256, "int8_256") },
    }
}

impl Int8 {
    /// [`quantize`](WeightFormat::quantize) for blocks of `N`.
    fn pack<const N: usize>(&self, values: &[f32], blocks: &mut [u8]) {
        let search = (&GRID, SHARES.as_slice());
        with_scales::<N>(
            values,
            blocks,
            self.block_bytes(),
            search,
            |values, scale, block| {
                let (scale_bytes, bytes) = block.split_at_mut(2);
                scale_bytes.copy_from_slice(&half_bytes(scale));
                codes(values, GRID, scale, 0.0, bytes);
            },
        );
    }
}

impl WeightFormat for Int8 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn block(&self) -> usize {
        self.block.elements()
    }

    fn block_bytes(&self) -> usize {
        2 + self.block.elements()
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let values = out.chunks_exact_mut(self.block());
        for (block, values) in blocks.chunks_exact(self.block_bytes()).zip(values) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (q, x) in block[2..].iter().zip(values) {
                *x = scale * f32::from(q.cast_signed());
            }
        }
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        match self.block {
            Block::B32 => self.pack::<32>(values, blocks),
            Block::B64 => self.pack::<64>(values, blocks),
            Block::B128 => self.pack::<128>(values, blocks),
            Block::B256 => self.pack::<256>(values, blocks),
        }
    }
}
