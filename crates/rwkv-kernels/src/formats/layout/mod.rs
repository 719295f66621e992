//! How the formats lie in GPU buffers: as packed as in the file, in another order.
//!
//! A matrix is cut into parts that are read on their own: the codes, so that 16 bytes (8 for codes of 2 bits) hold what
//! a thread takes at a time, a *unit*; what is left of codes whose bits are no power of two; the scales. Each part has
//! its rows one after the other, padded to 16 bytes. `wgsl/formats/` expands a unit.
//!
//! | format | shader | unit | bytes of each part, for elements | bytes a weight | in the file |
//! | --- | --- | --- | --- | --- | --- |
//! | F32 | `f32` | 4 | 4 / 1 | 4 | 4 |
//! | F16 | `f16` | 8 | 2 / 1 | 2 | 2 |
//! | Q8_0, Int8(32) | `int8` | 16 | codes 16 / 16, scales 2 / 32 | 1.0625 | 1.0625 |
//! | Int8(64, 128, 256) | `int8` | 16 | codes 16 / 16, scales 2 / block | 1.0313, 1.0156, 1.0078 | the same |
//! | Q4_0 | `q4_0` | 32 | codes 16 / 32, scales 2 / 32 | 0.5625 | 0.5625 |
//! | Q4_1 | `q4_1` | 32 | codes 16 / 32, scales and minima 4 / 32 | 0.625 | 0.625 |
//! | Q5_0 | `q5_0` | 32 | codes 16 / 32, scales 2 / 32, fifth bits 4 / 32 | 0.6875 | 0.6875 |
//! | Q5_1 | `q5_1` | 32 | codes 16 / 32, scales and minima 4 / 32, fifth bits 4 / 32 | 0.75 | 0.75 |
//! | Q2_K | `q2_k` | 32 | codes 8 / 32, factors 4 / 256, scales and minima 16 / 256 | 0.3281 | 0.3281 |
//! | Q3_K | `q3_k` | 32 | codes 8 / 32, factors 2 / 256, scales 12 / 256, third bits 4 / 32 | 0.4297 | 0.4297 |
//! | Q4_K | `q4_k` | 32 | codes 16 / 32, factors, scales and minima 16 / 256 | 0.5625 | 0.5625 |
//! | Q5_K | `q5_k` | 32 | codes 16 / 32, factors, scales and minima 16 / 256, fifth bits 4 / 32 | 0.6875 | 0.6875 |
//! | Q6_K | `q6_k` | 32 | codes 16 / 32, factors 2 / 256, scales 16 / 256, two more bits 8 / 32 | 0.8203 | 0.8203 |
//! | IQ4_NL, NF4(32), SF4(32) | `codebook` | 32 | codes 16 / 32, scales 2 / 32 | 0.5625 | 0.5625 |
//! | NF4, SF4(64, 128, 256) | `codebook` | 32 | codes 16 / 32, scales 2 / block | 0.5313, 0.5156, 0.5078 | the same |
//!
//! The padding of rows comes on top, less than 16 bytes a part and row, and the 64 bytes of a codebook, once a matrix.
//! BF16 has no layout: it is converted.
//!
//! Values are those of `dequantize`, to the bit where f32 multiplies and adds are correctly rounded, as Vulkan, Metal
//! and DX12 ask for: a code times its scales has at most 24 significant bits, so one rounding is left, that of adding
//! a minimum or multiplying by a codebook's number, and it is the same whether operations are fused or not.

mod bits;
mod blocks;
mod k_blocks;

use super::{Block, Format, codebook, iq4_nl};

/// How a format lies in GPU buffers.
#[derive(Debug)]
pub struct GpuLayout {
    shader: &'static str,
    unit: usize,
    parts: &'static [Part],
    /// Units that share a scale, where the shader serves blocks of several sizes.
    scale_units: Option<usize>,
    table: Option<&'static [f32; 16]>,
    pack: Pack,
}

/// Repacks one row into its parts.
type Pack = fn(&[u8], &mut [&mut [u8]]);

/// `bytes` for every `elements` elements of a row.
#[derive(Debug)]
struct Part {
    bytes: usize,
    elements: usize,
}

impl GpuLayout {
    /// The file `wgsl/formats/NAME.wgsl` that expands it, and the value of the axis FORMAT.
    pub fn shader(&self) -> &'static str {
        self.shader
    }

    /// The values of the shader's `override` constants.
    pub fn constants(&self) -> impl Iterator<Item = (&'static str, f64)> + use<> {
        self.scale_units
            .map(|units| ("SCALE_UNITS", units as f64))
            .into_iter()
    }

    /// Whether codes are integers of at most 8 bits, which the kernels of a single token multiply as such.
    pub(crate) fn codes_are_integers(&self) -> bool {
        self.table.is_none() && !matches!(self.shader, "f32" | "f16" | "q2_k" | "q3_k")
    }

    /// Elements of a unit: what the kernels step in.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Bytes of each part for one row of `cols` elements, in the order of the kernels' bindings in group 1.
    pub fn row_bytes(&self, cols: usize) -> Vec<usize> {
        let parts = self.parts.iter();
        parts
            .map(|part| {
                let bytes = (cols / part.elements).saturating_mul(part.bytes);
                bytes.checked_next_multiple_of(16).unwrap_or(usize::MAX)
            })
            .collect()
    }

    /// What the codes stand for, bound after the parts.
    pub fn table(&self) -> Option<&'static [f32; 16]> {
        self.table
    }

    /// Repacks one row from the file's layout: `parts[i]` has `row_bytes(cols)[i]` bytes, of which the padding is left
    /// as it is.
    pub fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]) {
        (self.pack)(row, parts);
    }
}

const fn layout(
    shader: &'static str,
    unit: usize,
    parts: &'static [Part],
    pack: Pack,
) -> GpuLayout {
    GpuLayout {
        shader,
        unit,
        parts,
        scale_units: None,
        table: None,
        pack,
    }
}

const fn part(bytes: usize, elements: usize) -> Part {
    Part { bytes, elements }
}

/// Signed bytes in blocks of `BLOCK` elements.
const fn int8<const BLOCK: usize>() -> GpuLayout {
    let parts = const { &[part(16, 16), part(2, BLOCK)] };
    GpuLayout {
        scale_units: Some(BLOCK / 16),
        ..layout("int8", 16, parts, blocks::int8::<BLOCK>)
    }
}

/// Codes of 4 bits into `table`, in blocks of `BLOCK` elements.
const fn codes<const BLOCK: usize>(table: &'static [f32; 16], pack: Pack) -> GpuLayout {
    let parts = const { &[part(16, 32), part(2, BLOCK)] };
    GpuLayout {
        scale_units: Some(BLOCK / 32),
        table: Some(table),
        ..layout("codebook", 32, parts, pack)
    }
}

/// Blocks of every size, in the order of [`Block::ALL`].
const fn all_sizes(table: &'static [f32; 16]) -> [GpuLayout; 4] {
    [
        codes::<32>(table, blocks::codebook::<32>),
        codes::<64>(table, blocks::codebook::<64>),
        codes::<128>(table, blocks::codebook::<128>),
        codes::<256>(table, blocks::codebook::<256>),
    ]
}

static INT8: [GpuLayout; 4] = [int8::<32>(), int8::<64>(), int8::<128>(), int8::<256>()];
static NF4: [GpuLayout; 4] = all_sizes(&codebook::NF4);
static SF4: [GpuLayout; 4] = all_sizes(&codebook::SF4);
static IQ4_NL: GpuLayout = codes::<32>(&IQ4_NL_TABLE, blocks::q4_0);
static IQ4_NL_TABLE: [f32; 16] = {
    let mut table = [0.0; 16];
    let mut i = 0;
    while i < table.len() {
        table[i] = iq4_nl::TABLE[i] as f32;
        i += 1;
    }
    table
};

static F32: GpuLayout = layout("f32", 4, &[part(4, 1)], blocks::copy);
static F16: GpuLayout = layout("f16", 8, &[part(2, 1)], blocks::copy);
static Q4_0: GpuLayout = layout("q4_0", 32, &[part(16, 32), part(2, 32)], blocks::q4_0);
static Q4_1: GpuLayout = layout("q4_1", 32, &[part(16, 32), part(4, 32)], blocks::q4_1);
static Q5_0: GpuLayout = layout(
    "q5_0",
    32,
    &[part(16, 32), part(2, 32), part(4, 32)],
    blocks::q5_0,
);
static Q5_1: GpuLayout = layout(
    "q5_1",
    32,
    &[part(16, 32), part(4, 32), part(4, 32)],
    blocks::q5_1,
);
static Q2_K: GpuLayout = layout(
    "q2_k",
    32,
    &[part(8, 32), part(4, 256), part(16, 256)],
    k_blocks::q2_k,
);
static Q3_K: GpuLayout = layout(
    "q3_k",
    32,
    &[part(8, 32), part(2, 256), part(12, 256), part(4, 32)],
    k_blocks::q3_k,
);
static Q4_K: GpuLayout = layout("q4_k", 32, &[part(16, 32), part(16, 256)], k_blocks::q4_k);
static Q5_K: GpuLayout = layout(
    "q5_k",
    32,
    &[part(16, 32), part(16, 256), part(4, 32)],
    k_blocks::q5_k,
);
static Q6_K: GpuLayout = layout(
    "q6_k",
    32,
    &[part(16, 32), part(2, 256), part(16, 256), part(8, 32)],
    k_blocks::q6_k,
);

/// The layout of `format`.
pub(super) fn of(format: Format) -> Option<&'static GpuLayout> {
    fn sized(all: &'static [GpuLayout; 4], block: Block) -> &'static GpuLayout {
        match block {
            Block::B32 => &all[0],
            Block::B64 => &all[1],
            Block::B128 => &all[2],
            Block::B256 => &all[3],
        }
    }
    Some(match format {
        Format::F32 => &F32,
        Format::F16 => &F16,
        Format::Bf16 => return None,
        Format::Q4_0 => &Q4_0,
        Format::Q4_1 => &Q4_1,
        Format::Q5_0 => &Q5_0,
        Format::Q5_1 => &Q5_1,
        Format::Q8_0 => sized(&INT8, Block::B32),
        Format::Q2K => &Q2_K,
        Format::Q3K => &Q3_K,
        Format::Q4K => &Q4_K,
        Format::Q5K => &Q5_K,
        Format::Q6K => &Q6_K,
        Format::Iq4Nl => &IQ4_NL,
        Format::Int8(block) => sized(&INT8, block),
        Format::Nf4(block) => sized(&NF4, block),
        Format::Sf4(block) => sized(&SF4, block),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packed on the GPU as tightly as in the file.
    #[test]
    fn no_more_bytes_than_the_file() {
        for format in Format::ALL {
            let Some(layout) = of(format) else { continue };
            for cols in [256, 1024, 2048, 65536] {
                let parts = layout.row_bytes(cols);
                let padding = parts.len() * 15;
                let (bytes, file) = (parts.iter().sum::<usize>(), format.row_bytes(cols));
                assert!(Some(bytes) <= file.map(|f| f + padding), "{format}");
                assert!(cols < 4096 || Some(bytes) == file, "{format}");
            }
        }
    }
}
