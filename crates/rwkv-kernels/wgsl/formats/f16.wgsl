// F16: eight elements to 16 bytes. `unpack2x16float` is in every WGSL, with or without the f16 feature. Drivers may take
// subnormal numbers (below 6.1e-5) for zero here: setting that right (half.wgsl) costs more than the elements do.
const UNIT: u32 = 8u;
const PARTS: u32 = UNIT / 4u;

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    let packed = weights[row * units + unit];
    return array<vec4<f32>, PARTS>(
        vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)),
        vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)),
    );
}

// For dot products (rows.wgsl): a unit as it lies, its values before scaling, and what scales its two halves and is
// added for each element of x.
const SCALES: u32 = 0u;
const MINIMA: bool = false;

struct Unit {
    packed: vec4<u32>,
}

fn load_unit(row: u32, unit: u32, units: u32) -> Unit {
    return Unit(weights[row * units + unit]);
}

fn unit_values(raw: Unit) -> array<vec4<f32>, PARTS> {
    return array<vec4<f32>, PARTS>(
        vec4(unpack2x16float(raw.packed.x), unpack2x16float(raw.packed.y)),
        vec4(unpack2x16float(raw.packed.z), unpack2x16float(raw.packed.w)),
    );
}

fn unit_scales(raw: Unit, unit: u32) -> vec4<f32> {
    return vec4(1.0);
}
