// ggml's Q6_K: d * scale * (q - 32), two scales of 8 bits a unit, d for 8 units.
#import formats/nibbles
#import formats/scales

// Signed bytes, two a unit.
@group(1) @binding(2) var<storage, read> group_scales: array<u32>;
// Two words a unit; a row is a whole number of blocks of 8 units.
@group(1) @binding(3) var<storage, read> high: array<vec2<u32>>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let at = row * units + unit;
    let groups = group_scales[at / 2u] >> ((unit & 1u) * 16u);
    let signed = vec2<i32>(vec2(groups << 24u, groups << 16u)) >> vec2(24u);
    let scale = scale_of(row, unit / 8u, units / 8u) * vec2<f32>(signed);
    return expand_6(weights[at], high[at], scale, -32.0 * scale);
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 2u;
const MINIMA: bool = false;

struct Unit {
    codes: vec4<u32>,
    scale: u32,
    groups: u32,
    high: vec2<u32>,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    let at = row * units + unit;
    return Unit(weights[at], scale_word(row, unit / 8u, units / 8u), group_scales[at / 2u], high[at]);
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return integers_6(raw.codes, raw.high, 32.0);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    // A row has an even number of units.
    let groups = raw.groups >> ((unit & 1u) * 16u);
    let signed = vec2<i32>(vec2(groups << 24u, groups << 16u)) >> vec2(24u);
    return vec4(scale_in(raw.scale, unit / 8u) * vec2<f32>(signed), 0.0, 0.0);
}

// For integer dot products (stream/integer.wgsl): the codes as bytes, those of 8 elements in two words, and what is taken
// off each.
const ZERO: i32 = 32;
const NEIGHBOURS: bool = false;

fn unit_bytes(raw: Unit) -> array<vec2<u32>, UNIT / 8u> {
    return bytes_6(raw.codes, raw.high);
}
