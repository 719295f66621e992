// Two bits of 32 codes in 8 bytes: of each word, bits 2 s of byte b are those of element b of part s.
fn pairs(unit: vec2<u32>, part: u32) -> u32 {
    return (unit[part / 4u] >> (2u * (part & 3u))) & 0x03030303u;
}
