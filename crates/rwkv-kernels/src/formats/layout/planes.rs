//! Codes as planes of bits, in the order in which the kernels expand them: four at a time, as the four bytes of a word.
//! In a word, byte b belongs to elements b, 4 + b, 8 + b and so on; where among its bits says which.

/// The low 4 bits of codes: of each 8 elements, elements 0 to 3 in the low halves of 4 bytes and 4 to 7 in the high.
pub(super) fn nibbles(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes
        .as_chunks::<8>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<4>().0)
    {
        for (b, out) in out.iter_mut().enumerate() {
            *out = codes[b] & 0xf | codes[4 + b] << 4;
        }
    }
}

/// Bits `shift` and `shift + 1` of codes: of each 16 elements, elements `4 s + b` in bits 2 s of byte b.
pub(super) fn pairs(codes: &[u8], shift: u32, out: &mut [u8]) {
    for (codes, out) in codes
        .as_chunks::<16>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<4>().0)
    {
        for (b, out) in out.iter_mut().enumerate() {
            *out = (0..4).fold(0, |byte, s| {
                byte | (codes[4 * s + b] >> shift & 3) << (2 * s)
            });
        }
    }
}

/// Bit `shift` of codes: of each 32 elements, elements `4 s + b` in bit s of byte b.
pub(super) fn bits(codes: &[u8], shift: u32, out: &mut [u8]) {
    for (codes, out) in codes
        .as_chunks::<32>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<4>().0)
    {
        for (b, out) in out.iter_mut().enumerate() {
            *out = (0..8).fold(0, |byte, s| byte | (codes[4 * s + b] >> shift & 1) << s);
        }
    }
}
