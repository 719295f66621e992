// ggml's Q4_1: scale * q + minimum, one of each a unit.
#import formats/nibbles
#import formats/scale_pairs

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_pair(row, unit, units);
    return expand_4(weights[row * units + unit], scale.x, scale.y);
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 1u;
const MINIMA: bool = true;

struct Unit {
    codes: vec4<u32>,
    scale: u32,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    return Unit(weights[row * units + unit], pair_word(row, unit, units));
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return integers_4(raw.codes, 0.0);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    return vec4(vec2(half_float(raw.scale)), vec2(half_float(raw.scale >> 16u)));
}

// For integer dot products (stream/integer.wgsl): the codes as bytes, those of 8 elements in two words, and what is taken
// off each.
const ZERO: i32 = 0;
const NEIGHBOURS: bool = false;

fn unit_bytes(raw: Unit) -> array<vec2<u32>, UNIT / 8u> {
    return bytes_4(raw.codes);
}
