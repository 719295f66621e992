// The decay of RWKV-5 and RWKV-6: exp(-exp(x)). Past 5 it is 0 in f32, and the inner exponential would be infinite
// past 88, which WGSL does not promise to handle.
fn decay6(x: f32) -> f32 {
    return exp(-exp(min(x, 5.0)));
}
