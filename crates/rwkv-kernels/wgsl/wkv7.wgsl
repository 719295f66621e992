// The RWKV-7 recurrence of one head over one span (Peng et al. 2025, "RWKV-7 Goose", eq. 17):
//   S ← S diag(w) − (S κ) (κ ⊙ a)ᵀ + v kᵀ,   y = S r,   with S of [value, key], κ the removal key
// A workgroup has some of the head's rows, see recurrence/tile; BLOCK tokens take the state from one value to the next.
#import recurrence/tile
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
@group(0) @binding(2) var<storage, read> r: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
// The replacement key, then the removal key.
@group(0) @binding(4) var<storage, read> keys: array<f32>;
@group(0) @binding(5) var<storage, read> v: array<f32>;
@group(0) @binding(6) var<storage, read> a: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

// A channel of four tokens. `rate` is the in-context rate as it comes, then that times the removal key.
struct Unit {
    r: vec4<f32>,
    w: vec4<f32>,
    k: vec4<f32>,
    kappa: vec4<f32>,
    rate: vec4<f32>,
}

alias Ahead = array<Unit, UNITS>;

fn load_ahead(place: Place, first: u32) -> Ahead {
    var ahead: Ahead;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let at = elements(place, first + unit / HEAD * 4u, unit % HEAD);
        let kappa = at + params.block;
        ahead[i].r = vec4(r[at.x], r[at.y], r[at.z], r[at.w]);
        ahead[i].w = vec4(w[at.x], w[at.y], w[at.z], w[at.w]);
        ahead[i].k = vec4(keys[at.x], keys[at.y], keys[at.z], keys[at.w]);
        ahead[i].kappa = vec4(keys[kappa.x], keys[kappa.y], keys[kappa.z], keys[kappa.w]);
        ahead[i].rate = vec4(a[at.x], a[at.y], a[at.z], a[at.w]);
    }
    return ahead;
}

// Tokens and channels past the end change nothing.
fn settled(place: Place, first: u32, unit: u32, brought: Unit) -> Unit {
    let there = are_there(place, first + unit / HEAD * 4u, unit % HEAD);
    let zero = vec4(0.0);
    return Unit(
        select(zero, brought.r, there),
        select(vec4(1.0), brought.w, there),
        select(zero, brought.k, there),
        select(zero, brought.kappa, there),
        select(zero, brought.kappa * brought.rate, there),
    );
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let place = place_of(at);
    if place.start == place.end {
        return;
    }
    var ahead = load_ahead(place, place.start);
    var ahead_values = load_values(place, place.start);
    var s = read_state(place);
    var first = place.start;
    loop {
        prepare(place, first, &ahead);
        workgroupBarrier();
        stage(place, ahead);
        stage_values(place, first, ahead_values);
        // Without a condition, past the end too: nothing then has to wait for what is on its way but its use.
        let next = first + STAGE;
        ahead = load_ahead(place, next);
        ahead_values = load_values(place, next);
        workgroupBarrier();
        advance(place, first, min(STAGE, place.end - first), &s);
        if next >= place.end {
            break;
        }
        first = next;
    }
    write_state(place, s);
}
