// F32: four elements to 16 bytes.
const UNIT: u32 = 4u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<f32>>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(weights[row * units + unit]);
}
