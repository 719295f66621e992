// y = x, 16 bytes a thread: how fast memory can be read and written.
#import invocation
#import grid

struct Params {
    // In 16 bytes.
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>;

const SIZE: u32 = 256u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let i = flat_workgroup(at) * SIZE + at.thread;
    if i < params.count {
        y[i] = x[i];
    }
}
