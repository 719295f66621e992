// Q8_0 and Int8: scale * q. A signed byte is stored as one without a sign, 128 larger, and becomes a float as the codes
// of 4 bits do (nibbles.wgsl).
#import formats/scales

const UNIT: u32 = 16u;
const PARTS: u32 = UNIT / 4u;

// Units that share a scale.
override SCALE_UNITS: u32 = 2u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;

fn signed_bytes(packed: u32) -> vec4<f32> {
    let pairs = vec4(packed, packed, packed >> 16u, packed >> 16u);
    let bits = (pairs & vec4(0xffu, 0xff00u, 0xffu, 0xff00u))
        | vec4(0x4b000000u, 0x47000000u, 0x4b000000u, 0x47000000u);
    return bitcast<vec4<f32>>(bits) - vec4(8388736.0, 32896.0, 8388736.0, 32896.0);
}

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_of(row, unit / SCALE_UNITS, units / SCALE_UNITS);
    let packed = weights[row * units + unit];
    return array<vec4<f32>, PARTS>(
        scale * signed_bytes(packed.x),
        scale * signed_bytes(packed.y),
        scale * signed_bytes(packed.z),
        scale * signed_bytes(packed.w),
    );
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
    return Unit(weights[row * units + unit], scale_word(row, unit / SCALE_UNITS, units / SCALE_UNITS));
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        signed_bytes(raw.codes.x),
        signed_bytes(raw.codes.y),
        signed_bytes(raw.codes.z),
        signed_bytes(raw.codes.w),
    );
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    let scale = scale_in(raw.scale, unit / SCALE_UNITS);
    return vec4(scale, scale, 0.0, 0.0);
}

// For integer dot products (stream/integer.wgsl): the codes as bytes, those of 8 elements in two words, and what is taken
// off each.
const ZERO: i32 = 0;
const NEIGHBOURS: bool = true;

fn unit_bytes(raw: Unit) -> array<vec2<u32>, UNIT / 8u> {
    let signed = raw.codes ^ vec4(0x80808080u);
    return array<vec2<u32>, UNIT / 8u>(signed.xy, signed.zw);
}
