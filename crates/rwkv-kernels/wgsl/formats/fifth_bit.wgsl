// The fifth bits of 32 codes: bit `part` of byte b is that of element b of the part.
fn fifth_bits(high: u32, part: u32) -> u32 {
    return ((high >> part) & 0x01010101u) << 4u;
}
