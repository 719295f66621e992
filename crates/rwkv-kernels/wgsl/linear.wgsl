// What matvec and matmul share: products with x in f32.
#import epilogue

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Elements `4 * part ..` of a token's x, zero past the last column: what lies in the padding is not a number of ours.
fn load_x(token: u32, part: u32) -> vec4<f32> {
    let value = x[token * params.x_stride + part];
    let left = vec4(4u * part) + vec4(0u, 1u, 2u, 3u);
    return select(vec4(0.0), value, left < vec4(params.cols));
}
