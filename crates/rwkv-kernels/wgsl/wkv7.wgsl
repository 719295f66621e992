// The RWKV-7 recurrence of one head over one span (Peng et al. 2025, "RWKV-7 Goose", eq. 17):
//   S ← S diag(w) − (S κ) (κ ⊙ a)ᵀ + v kᵀ,   y = S r,   with S of [value, key], κ the removal key
// A workgroup a head, a thread a row of S, which stays in registers for the whole span. HEAD is the head size rounded
// up: the channels past the end are zero and stay zero.
#import batch
#import invocation
#import grid

const HEAD: u32 = $HEAD;

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
@group(0) @binding(2) var<storage, read> r: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
// The replacement key, then the removal key.
@group(0) @binding(4) var<storage, read> keys: array<f32>;
@group(0) @binding(5) var<storage, read> v: array<f32>;
@group(0) @binding(6) var<storage, read> a: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

var<workgroup> r_head: array<f32, HEAD>;
var<workgroup> w_head: array<f32, HEAD>;
var<workgroup> k_head: array<f32, HEAD>;
var<workgroup> removal: array<f32, HEAD>;
var<workgroup> rate: array<f32, HEAD>;

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
    } else {
        // Channels past the end.
        w_head[row] = 0.0;
        k_head[row] = 0.0;
        r_head[row] = 0.0;
        removal[row] = 0.0;
        rate[row] = 0.0;
    }
    for (var t = span.start; t < span.start + span.length; t++) {
        let channel = t * params.stride + head * size + row;
        var value = 0.0;
        if live {
            let kappa = keys[params.block + channel];
            r_head[row] = r[channel];
            w_head[row] = w[channel];
            k_head[row] = keys[channel];
            removal[row] = kappa;
            rate[row] = kappa * a[channel];
            value = v[channel];
        }
        workgroupBarrier();
        var removed = 0.0;
        for (var j = 0u; j < HEAD; j++) {
            removed -= s[j] * removal[j];
        }
        var sum = 0.0;
        for (var j = 0u; j < HEAD; j++) {
            s[j] = s[j] * w_head[j] + removed * rate[j] + value * k_head[j];
            sum += s[j] * r_head[j];
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
