//! Repacking formats of independent elements, and of blocks with one scale.

use super::bits::{fifth_bits, halves};

/// Elements in file order.
pub(super) fn copy(row: &[u8], parts: &mut [&mut [u8]]) {
    if let [elements] = parts {
        elements[..row.len()].copy_from_slice(row);
    }
}

/// A scale and 32 codes of 4 bits: `Q4_0`, and `IQ4_NL`.
pub(super) fn q4_0(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales] = parts else { return };
    each(row, |i, block: &[u8; 18]| {
        put(scales, i, &block[..2]);
        put(codes, i, &halves(&block[2..]));
    });
}

/// A scale, a minimum and 32 codes of 4 bits.
pub(super) fn q4_1(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales] = parts else { return };
    each(row, |i, block: &[u8; 20]| {
        put(scales, i, &block[..4]);
        put(codes, i, &halves(&block[4..]));
    });
}

/// A scale, 32 fifth bits and 32 codes of 4 bits.
pub(super) fn q5_0(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales, high] = parts else { return };
    each(row, |i, block: &[u8; 22]| {
        put(scales, i, &block[..2]);
        put(high, i, &fifth([block[2], block[3], block[4], block[5]]));
        put(codes, i, &halves(&block[6..]));
    });
}

/// A scale, a minimum, 32 fifth bits and 32 codes of 4 bits.
pub(super) fn q5_1(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales, high] = parts else { return };
    each(row, |i, block: &[u8; 24]| {
        put(scales, i, &block[..4]);
        put(high, i, &fifth([block[4], block[5], block[6], block[7]]));
        put(codes, i, &halves(&block[8..]));
    });
}

/// A scale and `BLOCK` signed bytes, which the kernels want 128 larger.
pub(super) fn int8<const BLOCK: usize>(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales] = parts else { return };
    let codes = codes.as_chunks_mut::<BLOCK>().0;
    for ((i, block), codes) in row.chunks_exact(2 + BLOCK).enumerate().zip(codes) {
        put(scales, i, &block[..2]);
        for (code, byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte ^ 0x80;
        }
    }
}

/// A scale and `BLOCK` codes of 4 bits in order.
pub(super) fn codebook<const BLOCK: usize>(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales] = parts else { return };
    for (i, block) in row.chunks_exact(2 + BLOCK / 2).enumerate() {
        put(scales, i, &block[..2]);
        put(codes, i, &block[2..]);
    }
}

fn fifth(bits: [u8; 4]) -> [u8; 4] {
    fifth_bits(u32::from_le_bytes(bits)).to_le_bytes()
}

/// Every block of `BYTES` bytes and its number.
pub(super) fn each<const BYTES: usize>(row: &[u8], mut pack: impl FnMut(usize, &[u8; BYTES])) {
    for (i, block) in row.as_chunks::<BYTES>().0.iter().enumerate() {
        pack(i, block);
    }
}

/// Writes the `i`-th piece of a part.
pub(super) fn put(part: &mut [u8], i: usize, piece: &[u8]) {
    let start = i * piece.len();
    part[start..start + piece.len()].copy_from_slice(piece);
}
