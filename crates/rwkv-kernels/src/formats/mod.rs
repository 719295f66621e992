//! Weight formats: how a matrix's elements lie in bytes, in files and on the GPU.
//!
//! A matrix is `rows × cols`, row-major, and every row is a whole number of *blocks*: the smallest run of elements
//! that can be read on its own (one element for the float formats, 32 for `Q8_0`). One row of [`Format::ALL`] and one
//! implementation of [`WeightFormat`] are all that a format needs on this side; its WGSL side is
//! `wgsl/formats/NAME.wgsl`, with the layout in `layout/`.
//!
//! ggml's formats are those of `ggml-common.h` in the ggml project; the package `gguf` on PyPI is the oracle. What is
//! packed with scales is encoded by the searches of `scales.rs` and, for the K types, `nested.rs`, which stand on the least
//! squares of `search.rs`.

mod choice;
mod codebook;
mod csr;
mod float;
mod grid;
mod int8;
mod iq4_nl;
mod lanes;
mod layout;
mod nested;
mod prune;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q6_k;
mod q8_0;
mod scales;
mod search;

use std::fmt;

/// What codes stand for and how scales are packed, for expansion in registers.
pub(crate) mod tables {
    pub(crate) use super::{
        codebook::{NF4, SF4},
        iq4_nl::VALUES as IQ4_NL,
        q3_k::scales as q3_k_scales,
    };
}

pub use choice::{Choice, Family};
pub use csr::{Csr, CsrColumns};
pub use float::{F16_MAX, outside_f16};
pub(crate) use grid::Table;
pub(crate) use lanes::Lanes;
pub use layout::GpuLayout;
pub use prune::{Cut, Magnitudes};

/// A weight format: everything that differs between one and another.
pub trait WeightFormat: Sync {
    /// The name used by files and flags, in lower case.
    fn name(&self) -> &'static str;

    /// Elements a block.
    fn block(&self) -> usize;

    /// Bytes a block, as in a file.
    fn block_bytes(&self) -> usize;

    /// Expands whole blocks: `blocks` holds `n · block_bytes` bytes and `out` gets `n · block` values.
    fn dequantize(&self, blocks: &[u8], out: &mut [f32]);

    /// Packs whole blocks: the inverse of [`dequantize`](Self::dequantize), with the smallest squared error that the
    /// format's search finds where values do not fit.
    ///
    /// The float formats round, keep NaN and make infinities of what they cannot hold. The others count NaN as zero
    /// and cut values to the largest that they hold: what they expand to is always finite.
    fn quantize(&self, values: &[f32], blocks: &mut [u8]);
}

/// Elements that share a scale in `Int8`, `NF4` and `SF4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Block {
    B32,
    B64,
    B128,
    B256,
}

impl Block {
    /// Every size, the smallest first.
    pub const ALL: [Block; 4] = [Block::B32, Block::B64, Block::B128, Block::B256];

    /// Elements.
    pub const fn elements(self) -> usize {
        match self {
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
            Self::B256 => 256,
        }
    }
}

/// The weight formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// ggml's `Q4_0`: 32 elements of 4 bits and one f16 scale.
    Q4_0,
    /// ggml's `Q4_1`: 32 elements of 4 bits, an f16 scale and an f16 minimum.
    Q4_1,
    /// ggml's `Q5_0`: 32 elements of 5 bits and one f16 scale.
    Q5_0,
    /// ggml's `Q5_1`: 32 elements of 5 bits, an f16 scale and an f16 minimum.
    Q5_1,
    /// ggml's `Q8_0`: 32 signed bytes and one f16 scale.
    Q8_0,
    /// ggml's `Q2_K`: 256 elements of 2 bits, 16 groups with scales and minima of 4 bits.
    Q2K,
    /// ggml's `Q3_K`: 256 elements of 3 bits, 16 groups with scales of 6 bits.
    Q3K,
    /// ggml's `Q4_K`: 256 elements of 4 bits, 8 groups with scales and minima of 6 bits.
    Q4K,
    /// ggml's `Q5_K`: 256 elements of 5 bits, 8 groups with scales and minima of 6 bits.
    Q5K,
    /// ggml's `Q6_K`: 256 elements of 6 bits, 16 groups with scales of 8 bits.
    Q6K,
    /// ggml's `IQ4_NL`: 32 codes of 4 bits into a fixed table, and one f16 scale.
    Iq4Nl,
    /// Signed bytes and one f16 scale a block.
    Int8(Block),
    /// Codes of 4 bits into the quantiles of a normal distribution, and one f16 scale a block.
    Nf4(Block),
    /// Codes of 4 bits into the quantiles of a Student's t-distribution, and one f16 scale a block.
    Sf4(Block),
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 26] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Int8(Block::B32),
        Format::Int8(Block::B64),
        Format::Int8(Block::B128),
        Format::Int8(Block::B256),
        Format::Nf4(Block::B32),
        Format::Nf4(Block::B64),
        Format::Nf4(Block::B128),
        Format::Nf4(Block::B256),
        Format::Sf4(Block::B32),
        Format::Sf4(Block::B64),
        Format::Sf4(Block::B128),
        Format::Sf4(Block::B256),
    ];

    /// What this format does.
    pub fn spec(self) -> &'static dyn WeightFormat {
        match self {
            Format::F32 => &float::F32,
            Format::F16 => &float::F16,
            Format::Bf16 => &float::Bf16,
            Format::Q4_0 => &q4::Q4_0,
            Format::Q4_1 => &q4::Q4_1,
            Format::Q5_0 => &q5::Q5_0,
            Format::Q5_1 => &q5::Q5_1,
            Format::Q8_0 => &q8_0::Q8_0,
            Format::Q2K => &q2_k::Q2K,
            Format::Q3K => &q3_k::Q3K,
            Format::Q4K => &q4_k::Q4K,
            Format::Q5K => &q4_k::Q5K,
            Format::Q6K => &q6_k::Q6K,
            Format::Iq4Nl => &iq4_nl::Iq4Nl,
            Format::Int8(block) => int8::of(block),
            Format::Nf4(block) => codebook::nf4(block),
            Format::Sf4(block) => codebook::sf4(block),
        }
    }

    /// The format called `name` (any case).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|f| f.spec().name().eq_ignore_ascii_case(name))
    }

    /// Bytes of one row of `cols` elements, or `None` where `cols` is not a whole number of blocks or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let spec = self.spec();
        cols.is_multiple_of(spec.block())
            .then(|| (cols / spec.block()).checked_mul(spec.block_bytes()))
            .flatten()
    }

    /// The layout that the kernels read, or `None` for a format that is converted when it goes to the GPU.
    pub fn gpu_layout(self) -> Option<&'static GpuLayout> {
        layout::of(self)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec().name())
    }
}

/// Expands every block of `BYTES` bytes into the `VALUES` values that it stands for.
fn each_block<const BYTES: usize, const VALUES: usize>(
    blocks: &[u8],
    out: &mut [f32],
    expand: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let values = out.as_chunks_mut::<VALUES>().0;
    for (block, values) in blocks.as_chunks::<BYTES>().0.iter().zip(values) {
        expand(block, values);
    }
}

/// The last `N` bytes of a block that has as many.
fn tail<const N: usize, const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; N] {
    block.last_chunk().unwrap_or(&[0; N])
}

/// The f16 at byte `at` of a block.
fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    /// The largest root mean square error of a block, as a share of its largest element, when scales are ordinary f16s:
    /// half the widest step between codes where that is certain, and room for scales that are small integers in the K
    /// types. F32 is exact, F16 and BF16 have 11 and 8 bits.
    fn bound(format: Format) -> f32 {
        match format {
            Format::F32 => 0.0,
            Format::F16 => 1.0 / 2048.0,
            Format::Bf16 => 1.0 / 256.0,
            // Unlike signs at both ends: the step is 1 / 8 and the far end is a whole step away.
            Format::Q4_0 => 1.0 / 8.0,
            Format::Q5_0 => 1.0 / 16.0,
            // The range is twice the largest.
            Format::Q4_1 => 1.0 / 15.0,
            Format::Q5_1 => 1.0 / 31.0,
            Format::Q8_0 | Format::Int8(_) => 1.0 / 128.0,
            Format::Q2K => 0.5,
            Format::Q3K => 0.3,
            Format::Q4K => 0.1,
            Format::Q5K => 0.05,
            Format::Q6K => 0.04,
            Format::Iq4Nl => 14.0 / 113.0,
            Format::Nf4(_) => 0.16,
            Format::Sf4(_) => 0.19,
        }
    }

    fn round_trip(format: Format, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let mut blocks = vec![0xa5; format.row_bytes(values.len()).unwrap()];
        format.spec().quantize(values, &mut blocks);
        let mut decoded = vec![f32::NAN; values.len()];
        format.spec().dequantize(&blocks, &mut decoded);
        (blocks, decoded)
    }

    fn is_float(format: Format) -> bool {
        matches!(format, Format::F32 | Format::F16 | Format::Bf16)
    }

    /// 256 values of one size, with zeros, repetitions and outliers among them.
    fn ordinary() -> impl Strategy<Value = Vec<f32>> {
        let element = prop_oneof![
            6 => -1.0f32..1.0,
            1 => Just(0.0),
            1 => Just(0.5),
            1 => -0.01f32..0.01,
            1 => Just(-1.0),
        ];
        (
            prop::collection::vec(element, 256),
            -3.0f32..3.5,
            -1.0f32..1.0,
        )
            .prop_map(|(values, size, shift)| {
                // Half of the time around another point than zero.
                let shift = shift.max(0.0);
                let factor = 10.0f32.powf(size);
                values.iter().map(|x| factor * (x + shift)).collect()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn values_come_back(values in ordinary()) {
            for format in Format::ALL {
                let (_, decoded) = round_trip(format, &values);
                let block = format.spec().block();
                for (values, decoded) in values.chunks(block).zip(decoded.chunks(block)) {
                    let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    let squares: f32 = values.iter().zip(decoded).map(|(x, y)| (x - y).powi(2)).sum();
                    let error = (squares / block as f32).sqrt();
                    // An element of a float format can be an f16's subnormal.
                    let allowed = bound(format) * largest + 3e-8;
                    prop_assert!(error <= allowed, "{format}: {error}, allowed are {allowed}");
                }
            }
        }

        /// Any bits at all.
        #[test]
        fn hostile_values(bits in prop::collection::vec(any::<u32>(), 256)) {
            hostile(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
        }

        /// Any blocks expand, to as many values as there are.
        #[test]
        fn hostile_blocks(bytes in prop::collection::vec(any::<u8>(), 1024)) {
            for format in Format::ALL {
                let spec = format.spec();
                let blocks = bytes.len() / spec.block_bytes();
                let mut values = vec![0.0; blocks * spec.block()];
                spec.dequantize(&bytes[..blocks * spec.block_bytes()], &mut values);
            }
        }
    }

    fn hostile(values: &[f32]) {
        for format in Format::ALL.into_iter().filter(|f| !is_float(*f)) {
            let (blocks, decoded) = round_trip(format, values);
            assert!(
                decoded.iter().all(|x| x.is_finite()),
                "{format}: {values:?}"
            );
            // As documented: the same as without what is not a number.
            let numbers: Vec<f32> = values
                .iter()
                .map(|x| if x.is_nan() { 0.0 } else { *x })
                .collect();
            assert_eq!(
                blocks,
                round_trip(format, &numbers).0,
                "{format}: {values:?}"
            );
        }
    }

    #[test]
    fn limits() {
        for x in [
            f32::NAN,
            f32::INFINITY,
            f32::MAX,
            1e38,
            65504.0,
            65520.0,
            6e-8,
            1e-8,
            1e-12,
            f32::MIN_POSITIVE,
            1e-45,
        ] {
            let alternating: Vec<f32> = [x, -x, 0.0, x].repeat(64);
            for values in [vec![x; 256], vec![-x; 256], alternating] {
                hostile(&values);
                for format in Format::ALL.into_iter().filter(|f| !is_float(*f)) {
                    let (_, decoded) = round_trip(format, &values);
                    for (x, y) in values.iter().zip(decoded) {
                        if x.is_nan() || x.abs() < 1e-6 {
                            continue;
                        }
                        // Saturated, but never of the other sign.
                        let least = x.abs().min(65504.0) / 2.0;
                        assert!(y * x.signum() >= least, "{format}: {x} became {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_are_exact() {
        for format in Format::ALL {
            for zero in [0.0, -0.0] {
                let (_, decoded) = round_trip(format, &[zero; 256]);
                assert!(decoded.iter().all(|x| *x == 0.0), "{format}");
            }
        }
    }

    #[test]
    fn names() {
        for format in Format::ALL {
            let name = format.to_string();
            assert_eq!(Format::from_name(&name), Some(format));
            assert_eq!(Format::from_name(&name.to_uppercase()), Some(format));
        }
        for (name, want) in [
            ("Q4_K", Some(Format::Q4K)),
            ("q6_K", Some(Format::Q6K)),
            ("IQ4_NL", Some(Format::Iq4Nl)),
            ("BF16", Some(Format::Bf16)),
            ("int8_128", Some(Format::Int8(Block::B128))),
            ("q4_k_m", None),
            ("", None),
        ] {
            assert_eq!(Format::from_name(name), want, "{name}");
        }
    }
}
