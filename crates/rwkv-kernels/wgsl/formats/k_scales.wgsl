// Scales and minima of ggml's Q4_K and Q5_K: 6 bits each for the 8 units of a block.
#import formats/half

// A block: the f16 factors of the scales and of the minima; the low 4 bits of the scales; those of the minima; the
// upper 2 bits of the scales, then those of the minima.
@group(1) @binding(1) var<storage, read> scales: array<vec4<u32>>;

// What `unit` of `row` multiplies its codes by, and what it adds.
fn k_scale(row: u32, unit: u32, units: u32) -> vec2<f32> {
    return k_scale_in(k_word(row, unit, units), unit);
}

// The block that holds it, as it lies.
fn k_word(row: u32, unit: u32, units: u32) -> vec4<u32> {
    return scales[row * (units / 8u) + unit / 8u];
}

fn k_scale_in(block: vec4<u32>, unit: u32) -> vec2<f32> {
    let at = unit % 8u;
    let low = (block.yz >> vec2(at * 4u)) & vec2(0xfu);
    let high = (vec2(block.w) >> vec2(at * 2u, at * 2u + 16u)) & vec2(3u);
    let factors = vec2(half_float(block.x), -half_float(block.x >> 16u));
    return factors * vec2<f32>(low | (high << vec2(4u)));
}
