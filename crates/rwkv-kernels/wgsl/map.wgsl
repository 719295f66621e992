// Element by element: y = f(a, b, c, w), where a, b, c and y have the same rows and w is one row for all of them.
#import activation
#import invocation
#import grid

struct Params {
    // Elements in all, padding included.
    count: u32,
    // Between rows, in elements.
    stride: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> c: array<f32>;
@group(0) @binding(4) var<storage, read> w: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

override FUNCTION: u32 = 0u;

const SIZE: u32 = 256u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let i = flat_workgroup(at) * SIZE + at.thread;
    let channel = i % params.stride;
    if i >= params.count || channel >= params.width {
        return;
    }
    switch FUNCTION {
        case 0u: {
            y[i] = activate(a[i]);
        }
        case 1u: {
            y[i] = a[i] + b[i];
        }
        case 2u: {
            y[i] = a[i] * b[i];
        }
        case 3u: {
            y[i] = a[i] + (b[i] - a[i]) * c[i];
        }
        case 4u: {
            y[i] = a[i] + w[channel];
        }
        case 5u: {
            y[i] = a[i] + (b[i] - a[i]) * w[channel];
        }
        case 6u: {
            y[i] = a[i] * b[i] + c[i];
        }
        default: {}
    }
}
