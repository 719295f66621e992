//! Weight formats: how a matrix's elements lie in bytes, in files and on the GPU.
//!
//! A matrix is `rows × cols`, row-major, and every row is a whole number of *blocks*: the smallest run of elements
//! that can be read on its own (one element for the float formats, 32 for `Q8_0`). One row of [`Format::ALL`] and one
//! implementation of [`WeightFormat`] are all that a format needs on this side; its WGSL side is
//! `wgsl/formats/NAME.wgsl`, with the layout in `layout/`.
//!
//! ggml's formats are those of `ggml-common.h` in the ggml project; the package `gguf` on PyPI is the oracle.

mod codebook;
mod float;
mod int8;
mod iq4_nl;
mod layout;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q6_k;
mod q8_0;

use std::fmt;

pub use layout::GpuLayout;

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
    pub fn gpu_layout(self) -> Option<&'static dyn GpuLayout> {
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

/// The f16 at byte `at` of a block.
fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
