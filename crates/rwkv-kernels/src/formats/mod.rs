//! Weight formats: how a matrix's elements lie in bytes, in files and on the GPU.
//!
//! A matrix is `rows × cols`, row-major, and every row is a whole number of *blocks*: the smallest run of elements
//! that can be read on its own (one element for the float formats, 32 for `Q8_0`). One row of [`Format::ALL`] and one
//! implementation of [`WeightFormat`] are all that a format needs on this side; its WGSL side is
//! `wgsl/formats/NAME.wgsl`.

mod float;
mod q8_0;

use std::fmt;

/// A weight format: everything that differs between one and another.
pub trait WeightFormat: Sync {
    /// The name used by files, flags and shader variants, in lower case.
    fn name(&self) -> &'static str;

    /// Elements a block.
    fn block(&self) -> usize;

    /// Bytes a block, as in a file.
    fn block_bytes(&self) -> usize;

    /// Expands whole blocks: `blocks` holds `n · block_bytes` bytes and `out` gets `n · block` values.
    fn dequantize(&self, blocks: &[u8], out: &mut [f32]);

    /// Packs whole blocks: the inverse of [`dequantize`](Self::dequantize), rounding to the nearest where values do
    /// not fit.
    fn quantize(&self, values: &[f32], blocks: &mut [u8]);

    /// The layout that the kernels read, or `None` for a format that is converted when it goes to the GPU.
    fn gpu_layout(&self) -> Option<&'static dyn GpuLayout> {
        None
    }
}

/// How a format lies in GPU buffers: parts that are read on their own (quants apart from scales), rows aligned to
/// 16 bytes.
pub trait GpuLayout: Sync {
    /// Elements of a unit: what 16 bytes of the first part hold, and what the kernels step in.
    fn unit(&self) -> usize;

    /// Bytes of each part for one row of `cols` elements, in the order of the kernel's bindings in group 1.
    fn row_bytes(&self, cols: usize) -> Vec<usize>;

    /// Repacks one row from the file's layout: `parts[i]` has `row_bytes(cols)[i]` bytes and is zero beforehand.
    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]);
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
    /// ggml's `Q8_0`: 32 signed bytes and one f16 scale.
    Q8_0,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 4] = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0];

    /// What this format does.
    pub fn spec(self) -> &'static dyn WeightFormat {
        match self {
            Format::F32 => &float::F32,
            Format::F16 => &float::F16,
            Format::Bf16 => &float::Bf16,
            Format::Q8_0 => &q8_0::Q8_0,
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
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Expanding what was packed gives the values back within the format's own step.
        #[test]
        fn packing_keeps_values(format in prop::sample::select(&Format::ALL[..]), blocks in 1usize..5, seed in any::<u64>()) {
            let spec = format.spec();
            let mut x = seed | 1;
            let values: Vec<f32> = (0..blocks * spec.block())
                .map(|_| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    (x >> 40) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect();
            let mut packed = vec![0; blocks * spec.block_bytes()];
            spec.quantize(&values, &mut packed);
            let mut back = vec![f32::NAN; values.len()];
            spec.dequantize(&packed, &mut back);
            // The largest step of values in -1..=1: half a unit of Q8_0's scale of at most 1/127 and its f16 rounding,
            // half an ulp of the float formats.
            let step = match format {
                Format::F32 => 0.0,
                Format::F16 => 1.0 / 4096.0,
                Format::Bf16 => 1.0 / 512.0,
                Format::Q8_0 => 0.5 / 127.0 + 1.0 / 2048.0,
            };
            for (a, b) in values.iter().zip(&back) {
                prop_assert!((a - b).abs() <= step, "{format}: {a} became {b}");
            }
        }
    }

    #[test]
    fn names_and_sizes() {
        for format in Format::ALL {
            assert_eq!(
                Format::from_name(&format.to_string().to_uppercase()),
                Some(format)
            );
        }
        assert_eq!(Format::Q8_0.row_bytes(64), Some(68));
        assert_eq!(Format::Q8_0.row_bytes(33), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    }
}
