// The recurrence of RWKV-5 and RWKV-6, of one head over one span (Peng et al. 2024, "Eagle and Finch", section 4):
//   y = (S + v (u ⊙ k)ᵀ) r,   S ← S diag(w) + v kᵀ,   with S of [value, key] and u what the current token weighs
// A workgroup has some of the head's rows, see recurrence/tile; BLOCK tokens take the state from one value to the next.
#import recurrence/tile
#import decay6
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

// A channel of four tokens.
struct Unit {
    r: vec4<f32>,
    w: vec4<f32>,
    k: vec4<f32>,
    u: f32,
}

alias Ahead = array<Unit, UNITS>;

fn load_ahead(place: Place, first: u32) -> Ahead {
    var ahead: Ahead;
    for (var i = 0u; i < UNITS; i++) {
        let unit = place.thread + i * THREADS;
        let at = elements(place, first + unit / HEAD * 4u, unit % HEAD);
        let channel = place.channel + min(unit % HEAD, params.head_size - 1u);
        ahead[i].r = vec4(r[at.x], r[at.y], r[at.z], r[at.w]);
        if ONE_DECAY {
            ahead[i].w = vec4(w[channel]);
        } else {
            ahead[i].w = vec4(w[at.x], w[at.y], w[at.z], w[at.w]);
        }
        ahead[i].k = vec4(k[at.x], k[at.y], k[at.z], k[at.w]);
        ahead[i].u = u[channel];
    }
    return ahead;
}

// Tokens and channels past the end change nothing.
fn settled(place: Place, first: u32, unit: u32, brought: Unit) -> Unit {
    let there = are_there(place, first + unit / HEAD * 4u, unit % HEAD);
    let zero = vec4(0.0);
    var decay = brought.w;
    if ONE_DECAY {
        decay = vec4(decay6(decay.x));
    }
    return Unit(
        select(zero, brought.r, there),
        select(vec4(1.0), decay, there),
        select(zero, brought.k, there),
        brought.u,
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
