// Philox4x32 with 10 rounds, as in src/sampling/random.rs.

// The upper and the lower word of a · b.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xFFFFu) * (b & 0xFFFFu);
    let middle = (a >> 16u) * (b & 0xFFFFu) + (low >> 16u);
    // A product of 16 bits by 16 has room for a carry of 16 bits, but not for another product.
    let other = (a & 0xFFFFu) * (b >> 16u) + (middle & 0xFFFFu);
    return vec2<u32>((a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u), a * b);
}

// The number in [0, 1) that draw number `step` of a sampler with this seed uses; low words first.
fn uniform_number(seed: vec2<u32>, step: vec2<u32>) -> f32 {
    var counter = vec4<u32>(step, 0u, 0u);
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        let first = wide_product(counter.x, 0xD2511F53u);
        let second = wide_product(counter.z, 0xCD9E8D57u);
        counter = vec4<u32>(second.x ^ counter.y ^ key.x, second.y, first.x ^ counter.w ^ key.y, first.y);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return f32(counter.x >> 8u) / 16777216.0;
}
