// One more bit an element.

// A word a unit; a row is padded to 16 bytes.
@group(1) @binding(2) var<storage, read> high: array<u32>;

fn fifth_bits(row: u32, unit: u32, units: u32) -> u32 {
    return high[row * ((units + 3u) / 4u * 4u) + unit];
}
