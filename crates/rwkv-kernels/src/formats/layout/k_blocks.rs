//! Repacking ggml's K formats: blocks of 256 elements in 8 units, with scales of scales.

use super::{
    super::{q3_k, q4_k},
    bits::{bits, fifth_bits, nibbles, pairs, sixth_bits, third_bits, words},
    blocks::{each, put},
};

/// 16 scales and minima, 256 codes of 2 bits, two factors.
pub(super) fn q2_k(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, factors, scales] = parts else {
        return;
    };
    each(row, |i, block: &[u8; 84]| {
        put(scales, i, &block[..16]);
        put(factors, i, &block[80..]);
        put(codes, i, &two_bits(&block[16..80]));
    });
}

/// 256 third bits, 256 codes of 2 bits, 16 scales, a factor.
pub(super) fn q3_k(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, factors, scales, high] = parts else {
        return;
    };
    each(row, |i, block: &[u8; 110]| {
        let mut packed = [0u32; 3];
        for (group, scale) in q3_k::scales(&block[96..108]).iter().enumerate() {
            packed[group / 8] |= u32::from(scale & 0xf) << (group % 8 * 4);
            packed[2] |= u32::from(scale >> 4) << (group * 2);
        }
        put(scales, i, &words::<3, 12>(packed));
        put(factors, i, &block[108..]);
        let third = std::array::from_fn(|unit| third_bits(bits(&block[..32], shift(unit))));
        put(high, i, &words::<8, 32>(third));
        put(codes, i, &two_bits(&block[32..96]));
    });
}

/// Two factors, 8 scales and minima, 256 codes of 4 bits.
pub(super) fn q4_k(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales] = parts else { return };
    each(row, |i, block: &[u8; 144]| {
        put(scales, i, &k_scales(&block[..16]));
        put(codes, i, &four_bits(&block[16..]));
    });
}

/// Two factors, 8 scales and minima, 256 fifth bits, 256 codes of 4 bits.
pub(super) fn q5_k(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, scales, high] = parts else {
        return;
    };
    each(row, |i, block: &[u8; 176]| {
        put(scales, i, &k_scales(&block[..16]));
        let fifth = std::array::from_fn(|unit| fifth_bits(bits(&block[16..48], shift(unit))));
        put(high, i, &words::<8, 32>(fifth));
        put(codes, i, &four_bits(&block[48..]));
    });
}

/// 256 codes of 4 bits, 256 times two more, 16 scales, a factor.
pub(super) fn q6_k(row: &[u8], parts: &mut [&mut [u8]]) {
    let [codes, factors, scales, high] = parts else {
        return;
    };
    each(row, |i, block: &[u8; 210]| {
        put(scales, i, &block[192..208]);
        put(factors, i, &block[208..]);
        for unit in 0..8 {
            let (half, s) = (unit / 4, unit % 4);
            let low = &block[half * 64 + s % 2 * 32..];
            put(codes, i * 8 + unit, &nibbles(low, shift(s / 2 * 4)));
            let more = pairs(&block[128 + half * 32..], shift(s * 2)).map(sixth_bits);
            put(high, i * 8 + unit, &words::<2, 8>(more));
        }
    });
}

/// The factors as they are; then the low 4 bits of the scales, those of the minima, and the upper 2 bits of both.
fn k_scales(packed: &[u8]) -> [u8; 16] {
    let mut all = [0u32; 4];
    for (group, (scale, minimum)) in q4_k::scales(&packed[4..]).iter().enumerate() {
        let (scale, minimum) = (u32::from(*scale), u32::from(*minimum));
        all[1] |= (scale & 0xf) << (group * 4);
        all[2] |= (minimum & 0xf) << (group * 4);
        all[3] |= scale >> 4 << (group * 2) | minimum >> 4 << (group * 2 + 16);
    }
    let mut bytes = words(all);
    bytes[..4].copy_from_slice(&packed[..4]);
    bytes
}

/// 64 bytes, each 32 of which hold four units in bits 0, 2, 4 and 6.
fn two_bits(bytes: &[u8]) -> [u8; 64] {
    let mut all = [0; 64];
    for unit in 0..8 {
        let codes = pairs(&bytes[unit / 4 * 32..], shift(unit % 4 * 2));
        put(&mut all, unit, &words::<2, 8>(codes));
    }
    all
}

/// 128 bytes, each 32 of which hold two units in their halves.
fn four_bits(bytes: &[u8]) -> [u8; 128] {
    let mut all = [0; 128];
    for unit in 0..8 {
        let codes = nibbles(&bytes[unit / 2 * 32..], shift(unit % 2 * 4));
        put(&mut all, unit, &codes);
    }
    all
}

#[expect(clippy::cast_possible_truncation, reason = "at most 7")]
fn shift(bit: usize) -> u32 {
    bit as u32
}
