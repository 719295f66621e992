// The recurrence of RWKV-5 and RWKV-6, of one head over one span (Peng et al. 2024, "Eagle and Finch", section 4):
//   y = (S + v (u ⊙ k)ᵀ) r,   S ← S diag(w) + v kᵀ,   with S of [value, key] and u what the current token weighs
// A workgroup a head, a thread a row of S, which stays in registers for the whole span. HEAD is the head size rounded
// up: the channels past the end are zero and stay zero.
#import batch
#import invocation
#import grid
#import decay6

const HEAD: u32 = $HEAD;

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
@group(0) @binding(2) var<storage, read> r: array<f32>;
// RWKV-6: the decay of each token. RWKV-5: one row for all of them, before decay6.
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read> k: array<f32>;
@group(0) @binding(5) var<storage, read> v: array<f32>;
@group(0) @binding(6) var<storage, read> u: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

// Whether w is one row.
override ONE_DECAY: bool = false;

var<workgroup> r_head: array<f32, HEAD>;
var<workgroup> w_head: array<f32, HEAD>;
var<workgroup> k_head: array<f32, HEAD>;
var<workgroup> u_head: array<f32, HEAD>;

@compute @workgroup_size(HEAD)
fn main(at: Invocation) {
    let row = at.thread;
    let item = flat_workgroup(at);
    let index = item / params.heads;
    if index >= params.spans {
        return;
    }
    let span = spans[index];
    if !in_page(params.page, span.slot) {
        return;
    }
    let head = item % params.heads;
    let size = params.head_size;
    let live = row < size;
    let base = (((span.slot - params.page.first_slot) * params.heads + head) * size + row) * size;
    var s: array<f32, HEAD>;
    if live {
        for (var j = 0u; j < HEAD; j++) {
            if j < size {
                s[j] = state[base + j];
            }
        }
        u_head[row] = u[head * size + row];
        if ONE_DECAY {
            w_head[row] = decay6(w[head * size + row]);
        }
    } else {
        // Channels past the end.
        r_head[row] = 0.0;
        w_head[row] = 0.0;
        k_head[row] = 0.0;
        u_head[row] = 0.0;
    }
    for (var t = span.start; t < span.start + span.length; t++) {
        let channel = t * params.stride + head * size + row;
        var value = 0.0;
        if live {
            r_head[row] = r[channel];
            k_head[row] = k[channel];
            if !ONE_DECAY {
                w_head[row] = w[channel];
            }
            value = v[channel];
        }
        workgroupBarrier();
        var sum = 0.0;
        for (var j = 0u; j < HEAD; j++) {
            let added = value * k_head[j];
            sum += r_head[j] * (s[j] + u_head[j] * added);
            s[j] = s[j] * w_head[j] + added;
        }
        if live {
            y[channel] = sum;
        }
        workgroupBarrier();
    }
    if live {
        for (var j = 0u; j < HEAD; j++) {
            if j < size {
                state[base + j] = s[j];
            }
        }
    }
}
