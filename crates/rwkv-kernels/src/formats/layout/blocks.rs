//! The layouts of the block formats: how a block of the file is divided into parts. The file's own order is documented
//! in each format's file.

use super::{GpuLayout, planes};

/// A layout that repacks block by block.
pub(super) struct Blocks {
    kernel: &'static str,
    /// Elements and bytes of a block in the file.
    elements: usize,
    bytes: usize,
    /// Elements a unit.
    unit: usize,
    /// Whether the kernel takes the block's size as a constant.
    sized: bool,
    /// Bytes of a block in each part.
    parts: [usize; 4],
    repack: fn(block: &[u8], parts: &mut [&mut [u8]]),
}

impl GpuLayout for Blocks {
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    fn block(&self) -> Option<usize> {
        self.sized.then_some(self.elements)
    }

    fn unit(&self) -> usize {
        self.unit
    }

    fn row_bytes(&self, cols: usize) -> Vec<usize> {
        let blocks = cols / self.elements;
        (0..)
            .zip(self.parts)
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(part, bytes)| (blocks * bytes).next_multiple_of(if part == 0 { 16 } else { 4 }))
            .collect()
    }

    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]) {
        let mut rest: Vec<&mut [u8]> = parts.iter_mut().map(|part| &mut **part).collect();
        for block in row.chunks_exact(self.bytes) {
            let mut places = Vec::with_capacity(rest.len());
            for (part, bytes) in rest.iter_mut().zip(self.parts) {
                let Some((place, left)) = std::mem::take(part).split_at_mut_checked(bytes) else {
                    return;
                };
                places.push(place);
                *part = left;
            }
            (self.repack)(block, &mut places);
        }
    }
}

const fn blocks_of_32(
    kernel: &'static str,
    bytes: usize,
    parts: [usize; 4],
    repack: fn(&[u8], &mut [&mut [u8]]),
) -> Blocks {
    Blocks {
        kernel,
        elements: 32,
        bytes,
        unit: 32,
        sized: false,
        parts,
        repack,
    }
}

const fn blocks_of_256(
    kernel: &'static str,
    bytes: usize,
    parts: [usize; 4],
    repack: fn(&[u8], &mut [&mut [u8]]),
) -> Blocks {
    Blocks {
        elements: 256,
        ..blocks_of_32(kernel, bytes, parts, repack)
    }
}

pub(super) static Q4_0: Blocks = blocks_of_32("q4_0", 18, [16, 2, 0, 0], legacy::<2, false>);
pub(super) static IQ4_NL: Blocks = blocks_of_32("iq4_nl", 18, [16, 2, 0, 0], legacy::<2, false>);
pub(super) static Q4_1: Blocks = blocks_of_32("q4_1", 20, [16, 4, 0, 0], legacy::<4, false>);
pub(super) static Q5_0: Blocks = blocks_of_32("q5_0", 22, [16, 4, 2, 0], legacy::<2, true>);
pub(super) static Q5_1: Blocks = blocks_of_32("q5_1", 24, [16, 4, 4, 0], legacy::<4, true>);
pub(super) static Q2K: Blocks = blocks_of_256("q2_k", 84, [64, 16, 4, 0], q2_k);
pub(super) static Q3K: Blocks = blocks_of_256("q3_k", 110, [64, 32, 16, 0], q3_k);
pub(super) static Q4K: Blocks = blocks_of_256("q4_k", 144, [128, 16, 0, 0], q4_k);
pub(super) static Q5K: Blocks = blocks_of_256("q5_k", 176, [128, 32, 16, 0], q5_k);
pub(super) static Q6K: Blocks = blocks_of_256("q6_k", 210, [128, 64, 16, 2], q6_k);

/// Bytes and a scale.
pub(super) const fn int8(elements: usize) -> Blocks {
    Blocks {
        kernel: "int8",
        elements,
        bytes: elements + 2,
        unit: 16,
        sized: true,
        parts: [elements, 2, 0, 0],
        repack: |block, parts| {
            let (scale, codes) = block.split_at(2);
            fill(parts, [codes, scale]);
        },
    }
}

/// Codes into a table, and a scale.
pub(super) const fn codebook(kernel: &'static str, elements: usize) -> Blocks {
    Blocks {
        kernel,
        elements,
        bytes: elements / 2 + 2,
        unit: 32,
        sized: true,
        parts: [elements / 2, 2, 0, 0],
        repack: |block, parts| {
            let (scale, packed) = block.split_at(2);
            let codes: Vec<u8> = packed.iter().flat_map(|b| [b & 0xf, b >> 4]).collect();
            fill(parts, [&[], scale]);
            planes::nibbles(&codes, parts[0]);
        },
    }
}

/// Copies what moves as it is; an empty slice leaves its part alone.
fn fill<const N: usize>(parts: &mut [&mut [u8]], contents: [&[u8]; N]) {
    for (part, content) in parts.iter_mut().zip(contents) {
        if !content.is_empty() {
            part.copy_from_slice(content);
        }
    }
}

/// Blocks of 32: scales of `SCALES` bytes, high bits if there are any, low bits.
fn legacy<const SCALES: usize, const HIGH: bool>(block: &[u8], parts: &mut [&mut [u8]]) {
    let (scales, rest) = block.split_at(SCALES);
    let (high, low) = rest.split_at(if HIGH { 4 } else { 0 });
    let codes: [u8; 32] = std::array::from_fn(|i| {
        let nibble = low[i % 16] >> (i / 16 * 4) & 0xf;
        let bit = high.get(i / 8).map_or(0, |byte| byte >> (i % 8) & 1);
        nibble | bit << 4
    });
    planes::nibbles(&codes, parts[0]);
    if HIGH {
        planes::bits(&codes, 4, parts[1]);
        fill(parts, [&[], &[], scales]);
    } else {
        fill(parts, [&[], scales]);
    }
}

/// Codes of 2 bits: of each 32 bytes, element `32 s + i` in bits 2 s of byte i.
fn crumbs(packed: &[u8]) -> [u8; 256] {
    std::array::from_fn(|i| packed[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3)
}

/// Codes of 4 bits: of each 32 bytes, 32 elements in the low halves and then 32 in the high.
fn halves(packed: &[u8]) -> [u8; 256] {
    std::array::from_fn(|i| packed[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 0xf)
}

fn q2_k(block: &[u8], parts: &mut [&mut [u8]]) {
    planes::pairs(&crumbs(&block[16..80]), 0, parts[0]);
    fill(parts, [&[], &block[..16], &block[80..84]]);
}

/// d takes a word in front of the 12 bytes of scales.
fn q3_k(block: &[u8], parts: &mut [&mut [u8]]) {
    planes::pairs(&crumbs(&block[32..96]), 0, parts[0]);
    let high: [u8; 256] = std::array::from_fn(|i| block[i % 32] >> (i / 32) & 1);
    planes::bits(&high, 0, parts[1]);
    parts[2][..2].copy_from_slice(&block[108..110]);
    parts[2][4..].copy_from_slice(&block[96..108]);
}

fn q4_k(block: &[u8], parts: &mut [&mut [u8]]) {
    planes::nibbles(&halves(&block[16..]), parts[0]);
    fill(parts, [&[], &block[..16]]);
}

fn q5_k(block: &[u8], parts: &mut [&mut [u8]]) {
    planes::nibbles(&halves(&block[48..]), parts[0]);
    let high: [u8; 256] = std::array::from_fn(|i| block[16 + i % 32] >> (i / 32) & 1);
    planes::bits(&high, 0, parts[1]);
    fill(parts, [&[], &[], &block[..16]]);
}

fn q6_k(block: &[u8], parts: &mut [&mut [u8]]) {
    let low: [u8; 256] =
        std::array::from_fn(|i| block[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 0xf);
    planes::nibbles(&low, parts[0]);
    planes::pairs(&crumbs(&block[128..192]), 0, parts[1]);
    fill(parts, [&[], &[], &block[192..208], &block[208..210]]);
}
