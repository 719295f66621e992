// Sums over the threads of a row, and the norm of a head, where a subgroup has at least SHARE lanes.
struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) group: u32,
}

// Threads numbered so that those of a subgroup follow each other.
fn thread_of(at: Invocation) -> u32 {
    return at.group * at.lanes + at.lane;
}

// The sum of `value` over the threads of a row, known to all of them. Called by the whole workgroup, as the others.
fn share_add(value: vec4<f32>, thread: u32) -> vec4<f32> {
    var sum = value;
    for (var apart = 1u; apart < SHARE; apart *= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    return sum;
}

fn share_add2(value: vec2<f32>, thread: u32) -> vec2<f32> {
    var sum = value;
    for (var apart = 1u; apart < SHARE; apart *= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    return sum;
}

fn share_add1(value: f32) -> f32 {
    var sum = value;
    for (var apart = 1u; apart < SHARE; apart *= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    return sum;
}

// The norm of head_values, one row's, which is `value`: with the variance around the mean just found. The threads of each
// row find both anew, since they would have to meet once more to share them.
fn head_norm(value: f32, place: Place, epsilon: f32) -> f32 {
    var values: array<f32, HEAD / SHARE>;
    var sum = 0.0;
    for (var i = 0u; i < HEAD / SHARE; i++) {
        values[i] = head_values[place.part + i * SHARE];
        sum += values[i];
    }
    let mean = share_add1(sum) / f32(HEAD_SIZE);
    var square = 0.0;
    for (var i = 0u; i < HEAD / SHARE; i++) {
        let d = values[i] - mean;
        square += select(0.0, d * d, place.part + i * SHARE < HEAD_SIZE);
    }
    let variance = share_add1(square) / f32(HEAD_SIZE);
    return (value - mean) * (1.0 / sqrt(variance + epsilon));
}
