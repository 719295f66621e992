// A workgroup of a head in a step in which every span is one token: SHARE threads a row of the state, each with every
// SHARE-th vec4 of it in registers. HEAD is the head size rounded up: the rows and channels past the end are zero.
// A head of 128 has half the threads a row, so that no workgroup is larger than that of a head of 64.
const HEAD: u32 = $HEAD;
const THREADS: u32 = min(HEAD, 64u) * $SHARE;
const SHARE: u32 = THREADS / HEAD;
// Vec4s of a row that a thread has.
const QUADS: u32 = HEAD / 4u / SHARE;

// A thread's place: the row, and which of those that share it.
struct Place {
    row: u32,
    part: u32,
}

fn place_of(thread: u32) -> Place {
    return Place(thread / SHARE, thread % SHARE);
}

var<workgroup> head_values: array<f32, HEAD>;

// The norm of head_values, one channel's: over the head, with the variance around the mean just found. All of them are
// read by each thread that asks, four at a time.
fn head_norm(value: f32, size: u32, epsilon: f32) -> f32 {
    var sum = vec4(0.0);
    for (var i = 0u; i < HEAD; i += 4u) {
        if i < size {
            sum += vec4(head_values[i], head_values[i + 1u], head_values[i + 2u], head_values[i + 3u]);
        }
    }
    let mean = (sum.x + sum.y + sum.z + sum.w) / f32(size);
    var square = vec4(0.0);
    for (var i = 0u; i < HEAD; i += 4u) {
        if i < size {
            let d = vec4(head_values[i], head_values[i + 1u], head_values[i + 2u], head_values[i + 3u]) - mean;
            square += d * d;
        }
    }
    let variance = (square.x + square.y + square.z + square.w) / f32(size);
    return (value - mean) * (1.0 / sqrt(variance + epsilon));
}
