//! Moving the bits of many codes at a time.
//!
//! Files keep a few bits of each element in a byte and step through the bytes; the kernels want those of neighbouring
//! elements beside each other, and the rest of a code where one shift brings it above its low bits
//! (`wgsl/formats/nibbles.wgsl` and `pairs.wgsl` say where).

/// Eight bytes, the first in the low bits. The caller has at least so many.
fn eight(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// Bits 0 to 3 of each byte, beside each other.
fn nibbles_of(bytes: u64) -> u32 {
    let x = bytes & 0x0f0f_0f0f_0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    low_word(x | x >> 16)
}

/// Bits 0 and 1 of each byte, beside each other.
fn pairs_of(bytes: u64) -> u32 {
    let x = bytes & 0x0303_0303_0303_0303;
    let x = (x | x >> 6) & 0x000f_000f_000f_000f;
    let x = (x | x >> 12) & 0x0000_00ff_0000_00ff;
    low_word(x | x >> 24) & 0xffff
}

/// Bit 0 of each byte, beside each other.
fn bits_of(bytes: u64) -> u32 {
    // The product adds byte i, shifted to bit 56 + i, to nothing else in the top byte.
    let x = (bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080);
    low_word(x >> 56)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the upper half is not wanted"
)]
fn low_word(x: u64) -> u32 {
    x as u32
}

/// Bits `shift` to `shift + 3` of 32 bytes, as 16 bytes.
pub(super) fn nibbles(bytes: &[u8], shift: u32) -> [u8; 16] {
    let word = |i: usize| nibbles_of(eight(&bytes[i * 8..]) >> shift);
    words([word(0), word(1), word(2), word(3)])
}

/// The codes of 32 elements as ggml's blocks of 32 have them: the low halves of 16 bytes, then their high halves.
pub(super) fn halves(bytes: &[u8]) -> [u8; 16] {
    let word = |i: usize, shift: u32| nibbles_of(eight(&bytes[i * 8..]) >> shift);
    words([word(0, 0), word(1, 0), word(0, 4), word(1, 4)])
}

/// Bits `shift` and `shift + 1` of 32 bytes, as 2 words.
pub(super) fn pairs(bytes: &[u8], shift: u32) -> [u32; 2] {
    let half = |i: usize| pairs_of(eight(&bytes[i * 8..]) >> shift);
    [half(0) | half(1) << 16, half(2) | half(3) << 16]
}

/// Bit `shift` of 32 bytes, as a word.
pub(super) fn bits(bytes: &[u8], shift: u32) -> u32 {
    let byte = |i: usize| bits_of(eight(&bytes[i * 8..]) >> shift);
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

/// Bit i of 32 for codes of 4 bits: element i of vector v from bit `4 v + i` to bit `4 i + v mod 4` of half v / 4, which
/// transposes 4 × 4 bits.
pub(super) fn fifth_bits(x: u32) -> u32 {
    let swap = |x: u32, distance: u32, mask: u32| {
        let t = (x ^ x >> distance) & mask;
        x ^ t ^ t << distance
    };
    swap(swap(x, 3, 0x0a0a_0a0a), 6, 0x00cc_00cc)
}

/// Two bits of 16 elements for codes of 4 bits: element i of vector v from field `4 v + i` of 2 bits to bits
/// `4 i + 2 (v mod 2)` of half v / 2.
pub(super) fn sixth_bits(x: u32) -> u32 {
    let spread = |x: u32| {
        let x = x & 0x00ff_00ff;
        let x = (x | x << 4) & 0x0f0f_0f0f;
        (x | x << 2) & 0x3333_3333
    };
    spread(x) | spread(x >> 8) << 2
}

/// Bit i of 32 for codes of 2 bits: element i of vector v from bit `4 v + i` to bit `2 i + v mod 2` of byte v / 2.
pub(super) fn third_bits(x: u32) -> u32 {
    let spread = |x: u32| {
        let x = x & 0x0f0f_0f0f;
        let x = (x | x << 2) & 0x3333_3333;
        (x | x << 1) & 0x5555_5555
    };
    spread(x) | spread(x >> 4) << 1
}

/// Words as bytes.
pub(super) fn words<const WORDS: usize, const BYTES: usize>(words: [u32; WORDS]) -> [u8; BYTES] {
    const { assert!(BYTES == WORDS * 4) };
    let mut bytes = [0; BYTES];
    for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bits `from` of `x`, `width` wide, put at `to`.
    fn moved(x: u32, fields: u32, width: u32, to: impl Fn(u32) -> u32) -> u32 {
        let mask = (1 << width) - 1;
        (0..fields).fold(0, |out, e| out | (x >> (e * width) & mask) << to(e))
    }

    proptest! {
        #[test]
        fn as_one_by_one(bytes: [u8; 32], shift in 0u32..8, x: u32) {
            let all = |width: u32| -> u128 {
                let fields = bytes.iter().map(|b| u128::from(u32::from(*b) >> shift & ((1 << width) - 1)));
                (0u32..).zip(fields).fold(0, |out, (e, q)| out | q << (e * width))
            };
            if shift <= 4 {
                prop_assert_eq!(u128::from_le_bytes(nibbles(&bytes, shift)), all(4));
            }
            if shift <= 6 {
                let [low, high] = pairs(&bytes, shift);
                prop_assert_eq!(u128::from(low) | u128::from(high) << 32, all(2));
            }
            prop_assert_eq!(u128::from(bits(&bytes, shift)), all(1));

            let both: Vec<u8> = bytes[..16].iter().map(|b| b & 0xf).chain(bytes[..16].iter().map(|b| b >> 4)).collect();
            prop_assert_eq!(halves(&bytes[..16]), nibbles(&both, 0));

            prop_assert_eq!(fifth_bits(x), moved(x, 32, 1, |e| e / 16 * 16 + e % 4 * 4 + e / 4 % 4));
            prop_assert_eq!(sixth_bits(x), moved(x, 16, 2, |e| e / 8 * 16 + e % 4 * 4 + e / 4 % 2 * 2));
            prop_assert_eq!(third_bits(x), moved(x, 32, 1, |e| e / 8 * 8 + e % 4 * 2 + e / 4 % 2));
        }
    }
}
