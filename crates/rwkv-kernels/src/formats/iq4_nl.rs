//! ggml's `IQ4_NL`: blocks of 32 codes of 4 bits, `x = scale · TABLE[q]`. An f16 scale, then codes as in `Q4_0`.

use super::{WeightFormat, each_block, half_at, q4::nibbles};

pub(super) struct Iq4Nl;

/// What the codes stand for: `kvalues_iq4nl` of ggml.
pub(super) const TABLE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

impl WeightFormat for Iq4Nl {
    fn name(&self) -> &'static str {
        "iq4_nl"
    }

    fn block(&self) -> usize {
        32
    }

    fn block_bytes(&self) -> usize {
        18
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        each_block(blocks, out, |block: &[u8; 18], values: &mut [f32; 32]| {
            let scale = half_at(block, 0);
            for (q, x) in nibbles(&block[2..]).zip(values) {
                *x = scale * f32::from(TABLE[usize::from(q)]);
            }
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let _ = (values, blocks);
        unimplemented!()
    }
}
