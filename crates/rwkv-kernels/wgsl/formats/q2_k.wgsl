// ggml's Q2_K: d * scale * q - dmin * minimum, two scales and two minima of 4 bits a unit, d and dmin for 8 units.
#import formats/pairs
#import formats/scale_pairs

// Two bytes a unit: a scale in the low half, a minimum in the high.
@group(1) @binding(2) var<storage, read> group_scales: array<u32>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let at = row * units + unit;
    let groups = group_scales[at / 2u] >> ((unit & 1u) * 16u);
    let factors = scale_pair(row, unit / 8u, units / 8u);
    let scale = factors.x * vec2<f32>((vec2(groups) >> vec2(0u, 8u)) & vec2(0xfu));
    let minimum = factors.y * vec2<f32>((vec2(groups) >> vec2(4u, 12u)) & vec2(0xfu));
    return expand_2(weights[at], scale, -minimum);
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 2u;
const MINIMA: bool = true;

struct Unit {
    codes: vec2<u32>,
    scale: u32,
    groups: u32,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    let at = row * units + unit;
    return Unit(weights[at], pair_word(row, unit / 8u, units / 8u), group_scales[at / 2u]);
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return integers_2(raw.codes);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    // A row has an even number of units.
    let groups = raw.groups >> ((unit & 1u) * 16u);
    let scale = half_float(raw.scale) * vec2<f32>((vec2(groups) >> vec2(0u, 8u)) & vec2(0xfu));
    let minimum = half_float(raw.scale >> 16u) * vec2<f32>((vec2(groups) >> vec2(4u, 12u)) & vec2(0xfu));
    return vec4(scale, -minimum);
}
