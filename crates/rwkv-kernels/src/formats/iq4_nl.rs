//! ggml's `IQ4_NL`: blocks of 32 codes of 4 bits, `x = scale · TABLE[q]`. An f16 scale, then codes as in `Q4_0`.

use super::{
    WeightFormat, each_block,
    grid::Table,
    half_at, q4,
    scales::with_scales,
    search::{half_bytes, inverse},
    tail,
};

pub(super) struct Iq4Nl;

/// What the codes stand for: `kvalues_iq4nl` of ggml.
pub(super) const TABLE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// [`TABLE`] as f32.
pub(crate) const VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = TABLE[i] as f32;
        i += 1;
    }
    values
};

static GRID: Table = Table::new(&VALUES);

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
            q4::expand(tail(block), values, |q| {
                scale * f32::from(TABLE[usize::from(q & 0xf)])
            });
        });
    }

    fn quantize(&self, values: &[f32], blocks: &mut [u8]) {
        let search = (&GRID, q4::SHARES.as_slice());
        with_scales::<32>(values, blocks, 18, search, |values, scale, block| {
            let inverse = inverse(scale);
            block[..2].copy_from_slice(&half_bytes(scale));
            let mut codes = [0; 32];
            for (code, x) in codes.iter_mut().zip(values) {
                *code = GRID.code(x * inverse);
            }
            q4::pack(&codes, &mut block[2..]);
        });
    }
}
