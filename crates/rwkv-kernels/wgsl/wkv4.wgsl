// The RWKV-4 recurrence of one channel over one span (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer
// Era"): an average of the values so far, weighed by exp(key) that fades by exp(decay) a token, the current one by
// exp(bonus + key). Numerator and denominator are kept divided by exp(exponent), the largest weight so far, so that no
// exponential is above 1. A thread a channel.
#import batch
#import invocation
#import grid

struct Params {
    page: Page,
    spans: u32,
    width: u32,
    // Between rows, in elements.
    stride: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> decay: array<f32>;
@group(0) @binding(5) var<storage, read> bonus: array<f32>;
@group(0) @binding(6) var<storage, read> gate: array<f32>;
// [slot, 3, channel]: numerator, denominator, exponent.
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

// Whether the average is multiplied by the gate.
override HAS_GATE: bool = false;

const SIZE: u32 = 64u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let blocks = (params.width + SIZE - 1u) / SIZE;
    let item = flat_workgroup(at);
    let channel = item % blocks * SIZE + at.thread;
    if item / blocks >= params.spans || channel >= params.width {
        return;
    }
    let span = spans[item / blocks];
    if span.length == 0u || !in_page(params.page, span.slot) {
        return;
    }
    let base = (span.slot - params.page.first_slot) * 3u * params.width + channel;
    var numerator = state[base];
    var denominator = state[base + params.width];
    var exponent = state[base + 2u * params.width];
    // Nothing was seen yet: a denominator is at least 1 from the first token on.
    if denominator == 0.0 {
        exponent = -1e30;
    }
    let fade = -exp(decay[channel]);
    let extra = bonus[channel];
    for (var t = span.start; t < span.start + span.length; t++) {
        let i = t * params.stride + channel;
        let key = k[i];
        let value = v[i];
        var most = max(exponent, extra + key);
        let past = exp(exponent - most);
        let now = exp(extra + key - most);
        var average = (past * numerator + now * value) / (past * denominator + now);
        if HAS_GATE {
            average *= gate[i];
        }
        y[i] = average;
        let faded = exponent + fade;
        most = max(faded, key);
        let kept = exp(faded - most);
        let added = exp(key - most);
        numerator = kept * numerator + added * value;
        denominator = kept * denominator + added;
        exponent = most;
    }
    state[base] = numerator;
    state[base + params.width] = denominator;
    state[base + 2u * params.width] = exponent;
}
