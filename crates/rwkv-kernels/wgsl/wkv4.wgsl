// The RWKV-4 recurrence of one channel over one span (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer
// Era"): an average of the values so far, weighed by exp(key) that fades by exp(decay) a token, the current one by
// exp(bonus + key). Numerator and denominator are kept divided by exp(exponent), the largest weight so far, so that no
// exponential is above 1. A thread a channel, whose next tokens are on their way while it works on those before.
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
// Tokens under way at once.
const AHEAD: u32 = 8u;

// Key, value and gate of the tokens at hand: each thread's own, in workgroup memory because a loop over tokens that does the
// same for each of them cannot index registers.
var<workgroup> keys: array<f32, AHEAD * SIZE>;
var<workgroup> values: array<f32, AHEAD * SIZE>;
var<workgroup> gates: array<f32, AHEAD * SIZE>;

struct Ahead {
    k: array<f32, AHEAD>,
    v: array<f32, AHEAD>,
    gate: array<f32, AHEAD>,
}

// A channel of the tokens from `first` to before `end`; then the last one again.
fn load_ahead(first: u32, end: u32, channel: u32) -> Ahead {
    var ahead: Ahead;
    for (var n = 0u; n < AHEAD; n++) {
        let i = min(first + n, end - 1u) * params.stride + channel;
        ahead.k[n] = k[i];
        ahead.v[n] = v[i];
        if HAS_GATE {
            ahead.gate[n] = gate[i];
        }
    }
    return ahead;
}

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
    let end = span.start + span.length;
    var ahead = load_ahead(span.start, end, channel);
    for (var first = span.start; first < end; first += AHEAD) {
        for (var n = 0u; n < AHEAD; n++) {
            keys[n * SIZE + at.thread] = ahead.k[n];
            values[n * SIZE + at.thread] = ahead.v[n];
            if HAS_GATE {
                gates[n * SIZE + at.thread] = ahead.gate[n];
            }
        }
        if first + AHEAD < end {
            ahead = load_ahead(first + AHEAD, end, channel);
        }
        for (var n = 0u; n < min(AHEAD, end - first); n++) {
            let key = keys[n * SIZE + at.thread];
            let value = values[n * SIZE + at.thread];
            var most = max(exponent, extra + key);
            let past = exp(exponent - most);
            let now = exp(extra + key - most);
            var average = (past * numerator + now * value) / (past * denominator + now);
            if HAS_GATE {
                average *= gates[n * SIZE + at.thread];
            }
            y[(first + n) * params.stride + channel] = average;
            let faded = exponent + fade;
            most = max(faded, key);
            let kept = exp(faded - most);
            let added = exp(key - most);
            numerator = kept * numerator + added * value;
            denominator = kept * denominator + added;
            exponent = most;
        }
    }
    state[base] = numerator;
    state[base + params.width] = denominator;
    state[base + 2u * params.width] = exponent;
}
