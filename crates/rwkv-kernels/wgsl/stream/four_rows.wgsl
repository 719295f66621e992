#import dot_onto

// Weights of four neighbouring rows for four columns.
struct FourRows {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn dots_onto(sums: vec4<f32>, weights: FourRows, x: vec4<f32>) -> vec4<f32> {
    return vec4(
        dot_onto(sums.x, weights.a, x),
        dot_onto(sums.y, weights.b, x),
        dot_onto(sums.z, weights.c, x),
        dot_onto(sums.w, weights.d, x),
    );
}
