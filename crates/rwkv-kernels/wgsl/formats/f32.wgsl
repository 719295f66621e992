// F32: four elements to 16 bytes.
const UNIT: u32 = 4u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<f32>>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(weights[row * units + unit]);
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 0u;
const MINIMA: bool = false;

struct Unit {
    values: vec4<f32>,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    return Unit(weights[row * units + unit]);
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(raw.values);
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    return vec4(1.0);
}
