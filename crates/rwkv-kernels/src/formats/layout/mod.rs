//! How the formats lie in GPU buffers: what the files under `wgsl/formats/` read.
//!
//! Codes stay as narrow as in the file and are put in the order in which a kernel expands them: 16 bytes hold 32
//! consecutive elements of 4 bits; bits above the fourth, and scales, are parts of their own.
//!
//! | formats | parts of a block | bytes for elements | in the file |
//! | --- | --- | --- | --- |
//! | `F32`, `F16` | elements | 4, 2 / 1 | 4, 2 / 1 |
//! | `Q4_0`, `IQ4_NL` | codes, scale | 18 / 32 | 18 / 32 |
//! | `Q4_1` | codes, scale and minimum | 20 / 32 | 20 / 32 |
//! | `Q5_0`, `Q5_1` | codes, high bits, scale (and minimum) | 22, 24 / 32 | 22, 24 / 32 |
//! | `Q8_0`, `Int8` | bytes, scale | n + 2 / n | n + 2 / n |
//! | `Q2_K` | codes, scales and minima, d and dmin | 84 / 256 | 84 / 256 |
//! | `Q3_K` | low bits, high bits, d and scales | 112 / 256 | 110 / 256 |
//! | `Q4_K` | codes, d, dmin, scales and minima | 144 / 256 | 144 / 256 |
//! | `Q5_K` | codes, high bits, the same | 176 / 256 | 176 / 256 |
//! | `Q6_K` | low bits, high bits, scales, d | 210 / 256 | 210 / 256 |
//! | `NF4`, `SF4` | codes, scale | n/2 + 2 / n | n/2 + 2 / n |
//!
//! Rows are padded to 16 bytes in the first part, and to 4 bytes in the others.

mod blocks;
mod planes;

use super::{Block, Format};
use blocks::Blocks;

/// How a format lies in GPU buffers: parts that are read on their own, each with its rows one after the other.
pub trait GpuLayout: Sync {
    /// The value of the kernels' axis FORMAT.
    fn kernel(&self) -> &'static str;

    /// The kernels' constant BLOCK, where the format has blocks of several sizes: elements that share a scale.
    fn block(&self) -> Option<usize> {
        None
    }

    /// Elements of a unit: what the kernels step in.
    fn unit(&self) -> usize;

    /// Bytes of each part for one row of `cols` elements, in the order of the kernel's bindings in group 1.
    fn row_bytes(&self, cols: usize) -> Vec<usize>;

    /// Repacks one row from the file's layout: `parts[i]` has `row_bytes(cols)[i]` bytes and is zero beforehand.
    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]);
}

impl std::fmt::Debug for dyn GpuLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kernel())
    }
}

/// The layout of `format`.
pub(super) fn of(format: Format) -> Option<&'static dyn GpuLayout> {
    Some(match format {
        Format::F32 => &Plain {
            kernel: "f32",
            element: 4,
        },
        Format::F16 => &Plain {
            kernel: "f16",
            element: 2,
        },
        Format::Bf16 => return None,
        Format::Q4_0 => &blocks::Q4_0,
        Format::Q4_1 => &blocks::Q4_1,
        Format::Q5_0 => &blocks::Q5_0,
        Format::Q5_1 => &blocks::Q5_1,
        Format::Q2K => &blocks::Q2K,
        Format::Q3K => &blocks::Q3K,
        Format::Q4K => &blocks::Q4K,
        Format::Q5K => &blocks::Q5K,
        Format::Q6K => &blocks::Q6K,
        Format::Iq4Nl => &blocks::IQ4_NL,
        // The same bytes as Int8's smallest block.
        Format::Q8_0 => int8(Block::B32),
        Format::Int8(block) => int8(block),
        Format::Nf4(block) => codebook("nf4", block),
        Format::Sf4(block) => codebook("sf4", block),
    })
}

fn int8(block: Block) -> &'static Blocks {
    match block {
        Block::B32 => const { &blocks::int8(32) },
        Block::B64 => const { &blocks::int8(64) },
        Block::B128 => const { &blocks::int8(128) },
        Block::B256 => const { &blocks::int8(256) },
    }
}

fn codebook(kernel: &'static str, block: Block) -> &'static Blocks {
    match (kernel, block) {
        ("nf4", Block::B32) => const { &blocks::codebook("nf4", 32) },
        ("nf4", Block::B64) => const { &blocks::codebook("nf4", 64) },
        ("nf4", Block::B128) => const { &blocks::codebook("nf4", 128) },
        ("nf4", Block::B256) => const { &blocks::codebook("nf4", 256) },
        (_, Block::B32) => const { &blocks::codebook("sf4", 32) },
        (_, Block::B64) => const { &blocks::codebook("sf4", 64) },
        (_, Block::B128) => const { &blocks::codebook("sf4", 128) },
        (_, Block::B256) => const { &blocks::codebook("sf4", 256) },
    }
}

/// Elements in file order, each row padded with zeros to 16 bytes.
struct Plain {
    kernel: &'static str,
    element: usize,
}

impl GpuLayout for Plain {
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    fn unit(&self) -> usize {
        16 / self.element
    }

    fn row_bytes(&self, cols: usize) -> Vec<usize> {
        vec![(cols * self.element).next_multiple_of(16)]
    }

    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]) {
        if let Some(part) = parts.first_mut() {
            part[..row.len()].copy_from_slice(row);
        }
    }
}
