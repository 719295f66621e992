// The recurrence of RWKV-5 and RWKV-6, of one head over one span (Peng et al. 2024, "Eagle and Finch", section 4):
//   y = (S + v (u ⊙ k)ᵀ) r,   S ← S diag(w) + v kᵀ,   with S of [value, key] and u what the current token weighs
// A workgroup has some of the head's rows, see recurrence/tile; BLOCK tokens take the state from one value to the next.
#import recurrence/tile
#import decay6
#import recurrence/walk
#import wkv6/tokens_$BLOCK

struct Params {
    page: Page,
    spans: u32,
    heads: u32,
    head_size: u32,
    // Between rows, in elements.
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> r: array<Element>;
// RWKV-6: the decay of each token. RWKV-5: one row for all of them, before decay6.
@group(0) @binding(3) var<storage, read> w: array<Element>;
@group(0) @binding(4) var<storage, read> k: array<Element>;
@group(0) @binding(5) var<storage, read> v: array<Element>;
@group(0) @binding(6) var<storage, read> u: array<Element>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

// Whether w is one row.
override ONE_DECAY: bool = false;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    walk(at);
}
