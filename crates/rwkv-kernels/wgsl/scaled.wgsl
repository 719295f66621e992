// Four elements of a unit: `value`, part number `part` of its `unit_values`, with what `unit_scales` says.
fn scaled(value: vec4<f32>, scales: vec4<f32>, part: u32) -> vec4<f32> {
    let half = select(0u, 1u, part >= PARTS / 2u);
    var result = value;
    if SCALES > 0u {
        result *= scales[half];
    }
    if MINIMA {
        result += scales[2u + half];
    }
    return result;
}
