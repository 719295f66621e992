// IQ4_NL, NF4 and SF4: scale * table[q], codes as in nibbles.wgsl.
#import formats/scales

const UNIT: u32 = 32u;
const PARTS: u32 = UNIT / 4u;

// Units that share a scale.
override SCALE_UNITS: u32 = 1u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;
// In memory, where its 64 bytes stay in the nearest cache and lanes may read different places at once; an array of
// constants would be copied to each thread's own memory, or read one lane after the other.
@group(1) @binding(2) var<storage, read> table: array<f32, 16>;

fn look_up(packed: u32) -> vec4<f32> {
    return vec4(
        table[packed & 0xfu],
        table[(packed >> 4u) & 0xfu],
        table[(packed >> 8u) & 0xfu],
        table[(packed >> 12u) & 0xfu],
    );
}

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let scale = scale_of(row, unit / SCALE_UNITS, units / SCALE_UNITS);
    let packed = weights[row * units + unit];
    return array<vec4<f32>, PARTS>(
        scale * look_up(packed.x),
        scale * look_up(packed.x >> 16u),
        scale * look_up(packed.y),
        scale * look_up(packed.y >> 16u),
        scale * look_up(packed.z),
        scale * look_up(packed.z >> 16u),
        scale * look_up(packed.w),
        scale * look_up(packed.w >> 16u),
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
        look_up(raw.codes.x),
        look_up(raw.codes.x >> 16u),
        look_up(raw.codes.y),
        look_up(raw.codes.y >> 16u),
        look_up(raw.codes.z),
        look_up(raw.codes.z >> 16u),
        look_up(raw.codes.w),
        look_up(raw.codes.w >> 16u),
    );
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    let scale = scale_in(raw.scale, unit / SCALE_UNITS);
    return vec4(scale, scale, 0.0, 0.0);
}
