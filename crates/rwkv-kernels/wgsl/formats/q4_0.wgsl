// ggml's Q4_0: scale * (q - 8), one scale a unit.
#import formats/nibbles
#import formats/scales

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_of(row, unit, units);
    return expand_4(weights[row * units + unit], scale, -8.0 * scale);
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 1u;
const MINIMA: bool = false;

struct Unit {
    codes: vec4<u32>,
    scale: u32,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    return Unit(weights[row * units + unit], scale_word(row, unit, units));
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return integers_4(raw.codes, 8.0);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    let scale = scale_in(raw.scale, unit);
    return vec4(scale, scale, 0.0, 0.0);
}

// For integer dot products (stream/integer.wgsl): the codes as bytes, those of 8 elements in two words, and what is taken
// off each.
const ZERO: i32 = 8;
const NEIGHBOURS: bool = false;

fn unit_bytes(raw: Unit) -> array<vec2<u32>, UNIT / 8u> {
    return bytes_4(raw.codes);
}
