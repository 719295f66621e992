//! `NF4` and `SF4`: blocks of 32 to 256 codes of 4 bits into a table, `x = scale · TABLE[q]`. An f16 scale, then codes:
//! element 2 i in the low half of byte i, element 2 i + 1 in the high.

use super::{
    Block, WeightFormat,
    grid::Table,
    scales::with_scales,
    search::{half_bytes, inverse},
};
use half::f16;

pub(super) struct Codebook {
    block: Block,
    name: &'static str,
    table: &'static [f32; 16],
    grid: &'static Table,
}

/// Where the search puts the largest element.
const SHARES: [f32; 9] = [0.8, 0.86, 0.92, 0.97, 1.0, 1.06, 1.15, 1.3, 1.5];

static NF4_GRID: Table = Table::new(&NF4);
static SF4_GRID: Table = Table::new(&SF4);

/// Quantiles of the normal distribution, scaled to −1 … 1 with an exact zero (Dettmers et al. 2023, "QLoRA", appendix E).
pub(crate) const NF4: [f32; 16] = [
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
pub(crate) const SF4: [f32; 16] = [
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
            grid: &NF4_GRID,
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
            grid: &SF4_GRID,
        }
    }
    match block {
        Block::B32 => const { &format(Block::B32, "sf4_32") },
        Block::B64 => const { &format(Block::B64, "sf4_64") },
        Block::B128 => const { &format(Block::B128, "sf4_128") },
        Block::B256 => const { &format(Block::B256, "sf4_256") },
    }
}

impl Codebook {
    /// [`quantize`](WeightFormat::quantize) for blocks of `N`.
    fn pack<const N: usize>(&self, values: &[f32], blocks: &mut [u8]) {
        let search = (self.grid, SHARES.as_slice());
        with_scales::<N>(
            values,
            blocks,
            self.block_bytes(),
            search,
            |values, scale, block| {
                let inverse = inverse(scale);
                let (scale_bytes, codes) = block.split_at_mut(2);
                scale_bytes.copy_from_slice(&half_bytes(scale));
                for (pair, byte) in values.as_chunks::<2>().0.iter().zip(codes) {
                    let [low, high] = pair.map(|x| self.grid.code(x * inverse));
                    *byte = low | high << 4;
                }
            },
        );
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
        match self.block {
            Block::B32 => self.pack::<32>(values, blocks),
            Block::B64 => self.pack::<64>(values, blocks),
            Block::B128 => self.pack::<128>(values, blocks),
            Block::B256 => self.pack::<256>(values, blocks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    /// Both tables from their recipe: quantiles at 8 probabilities from δ to ½ and 9 from ½ to 1 − δ, evenly spaced,
    /// δ = (1/32 + 1/30) / 2, divided by the largest.
    fn quantiles(cumulative: fn(f64) -> f64) -> [f64; 16] {
        let quantile = |p: f64| {
            let (mut low, mut high) = (-50.0, 50.0);
            for _ in 0..100 {
                let middle = f64::midpoint(low, high);
                if cumulative(middle) < p {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            low
        };
        // The reference implementation of NF4 rounds 1 − δ so.
        let outer = 0.967_708_3;
        let largest = quantile(outer);
        std::array::from_fn(|i| {
            let i = i as f64;
            let p = if i < 8.0 {
                (1.0 - outer) + (outer - 0.5) * i / 7.0
            } else {
                0.5 + (outer - 0.5) * (i - 7.0) / 8.0
            };
            quantile(p) / largest
        })
    }

    /// By Simpson's rule from 0 to x.
    fn normal(x: f64) -> f64 {
        let steps = 400;
        let width = x / f64::from(steps);
        let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * PI).sqrt();
        let sum: f64 = (0..=steps)
            .map(|i| {
                let weight = match i {
                    0 => 1.0,
                    i if i == steps => 1.0,
                    i if i % 2 == 1 => 4.0,
                    _ => 2.0,
                };
                weight * density(f64::from(i) * width)
            })
            .sum();
        0.5 + sum * width / 3.0
    }

    /// With 5 degrees of freedom it has a closed form.
    fn student(x: f64) -> f64 {
        let angle = (x / 5.0f64.sqrt()).atan();
        let (sin, cos) = angle.sin_cos();
        0.5 + (angle + sin * cos * (1.0 + cos * cos * 2.0 / 3.0)) / PI
    }

    #[test]
    fn tables_follow_their_recipe() {
        for (table, cumulative, digits) in [
            (NF4, normal as fn(f64) -> f64, 3e-7),
            // Printed with three digits.
            (SF4, student, 5.1e-4),
        ] {
            for (printed, derived) in table.iter().zip(quantiles(cumulative)) {
                let difference = (f64::from(*printed) - derived).abs();
                assert!(difference <= digits, "{printed} is derived as {derived}");
            }
        }
    }

    /// The table as bitsandbytes prints it.
    #[test]
    fn nf4_is_the_published_table() {
        #[allow(clippy::excessive_precision, reason = "as printed")]
        let published: [f32; 16] = [
            -1.0,
            -0.696_192_800_998_687_7,
            -0.525_073_051_452_636_7,
            -0.394_917_488_098_144_53,
            -0.284_441_381_692_886_35,
            -0.184_773_430_228_233_34,
            -0.091_050_036_251_544_95,
            0.0,
            0.079_580_299_556_255_34,
            0.160_930_201_411_247_25,
            0.246_112_301_945_686_34,
            0.337_915_241_718_292_24,
            0.440_709_829_330_444_34,
            0.562_617_003_917_694_1,
            0.722_956_836_223_602_3,
            1.0,
        ];
        assert_eq!(NF4.map(f32::to_bits), published.map(f32::to_bits));
    }

    /// The table of cells finds what comparing with all 16 finds.
    #[test]
    fn codes_are_nearest() {
        for (grid, table) in [(&NF4_GRID, NF4), (&SF4_GRID, SF4)] {
            for i in -3000..=3000i16 {
                let y = f32::from(i) / 2500.0;
                let distance = |q: usize| (table[q] - y).abs();
                let least = (0..16).map(distance).fold(f32::INFINITY, f32::min);
                let found = distance(usize::from(grid.code(y)));
                assert!(found - least < 1e-7, "{y} is {found} away, not {least}");
            }
        }
    }
}
