// ggml's Q4_K: d * scale * q - dmin * minimum, a scale and a minimum of 6 bits a unit, d and dmin for 8 units.
#import formats/nibbles
#import formats/k_scales

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = k_scale(row, unit, units);
    return expand_4(weights[row * units + unit], scale.x, scale.y);
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 1u;
const MINIMA: bool = true;

struct Unit {
    codes: vec4<u32>,
    scale: vec4<u32>,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    return Unit(weights[row * units + unit], k_word(row, unit, units));
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return integers_4(raw.codes, 0.0);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    return k_scale_in(raw.scale, unit).xxyy;
}

// For integer dot products (stream/integer.wgsl): the codes as bytes, those of 8 elements in two words, and what is taken
// off each.
const ZERO: i32 = 0;
const NEIGHBOURS: bool = false;

fn unit_bytes(raw: Unit) -> array<vec2<u32>, UNIT / 8u> {
    return bytes_4(raw.codes);
}
