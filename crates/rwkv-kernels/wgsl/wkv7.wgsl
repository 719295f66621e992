// The RWKV-7 recurrence of one head over one span (Peng et al. 2025, "RWKV-7 Goose", eq. 17):
//   S ← S diag(w) − (S κ) (κ ⊙ a)ᵀ + v kᵀ,   y = S r,   with S of [value, key], κ the removal key
// A workgroup has some of the head's rows, see recurrence/tile; BLOCK tokens take the state from one value to the next.
#import recurrence/tile
#import recurrence/walk
#import wkv7/tokens_$BLOCK

struct Params {
    page: Page,
    spans: u32,
    heads: u32,
    head_size: u32,
    // Between rows, and between the two keys, in elements.
    stride: u32,
    block: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> r: array<Element>;
@group(0) @binding(3) var<storage, read> w: array<Element>;
// The replacement key, then the removal key.
@group(0) @binding(4) var<storage, read> keys: array<Element>;
@group(0) @binding(5) var<storage, read> v: array<Element>;
@group(0) @binding(6) var<storage, read> a: array<Element>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    walk(at);
}
