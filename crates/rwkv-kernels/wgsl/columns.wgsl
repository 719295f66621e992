// F16 with the column of one input contiguous: 16 bytes are the weights from one input to eight outputs, and
// `params.units` of them make a column. Subnormal numbers as in formats/f16.wgsl.
@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>;

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn eight(packed: vec4<u32>) -> Eight {
    return Eight(
        vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)),
        vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)),
    );
}
