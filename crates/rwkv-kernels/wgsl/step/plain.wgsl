// Sums over the threads of a row, and the norm of a head, through workgroup memory alone.
#import invocation

var<workgroup> partial: array<vec4<f32>, THREADS>;

fn thread_of(at: Invocation) -> u32 {
    return at.thread;
}

// The sum of `value` over the threads of a row, known to all of them. Called by the whole workgroup, as the others.
fn share_add(value: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    partial[thread] = value;
    workgroupBarrier();
    var sum = vec4(0.0);
    for (var part = 0u; part < SHARE; part++) {
        sum += partial[thread / SHARE * SHARE + part];
    }
    return sum;
}

fn share_add2(value: vec2<f32>, thread: u32) -> vec2<f32> {
    return share_add(vec4(value, 0.0, 0.0), thread).xy;
}

// The norm of head_values, one row's, which is `value`: with the variance around the mean just found. The first thread of
// a row reads all of them, four at a time; the others need no result.
fn head_norm(value: f32, place: Place, epsilon: f32) -> f32 {
    if place.part > 0u {
        return 0.0;
    }
    var sum = vec4(0.0);
    for (var i = 0u; i < HEAD_SIZE; i += 4u) {
        sum += vec4(head_values[i], head_values[i + 1u], head_values[i + 2u], head_values[i + 3u]);
    }
    let mean = (sum.x + sum.y + sum.z + sum.w) / f32(HEAD_SIZE);
    var square = vec4(0.0);
    for (var i = 0u; i < HEAD_SIZE; i += 4u) {
        let d = vec4(head_values[i], head_values[i + 1u], head_values[i + 2u], head_values[i + 3u]) - mean;
        square += d * d;
    }
    let variance = (square.x + square.y + square.z + square.w) / f32(HEAD_SIZE);
    return (value - mean) * (1.0 / sqrt(variance + epsilon));
}
