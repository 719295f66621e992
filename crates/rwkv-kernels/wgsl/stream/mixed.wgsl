// Layer norm and token shift of one token, as every workgroup makes them for itself: mean and variance from registers
// (Chan, Golub and LeVeque 1979), then a mix of the normed row with the row before it. Whoever imports this has `x`, the
// norm's weight, bias and mixes in `vectors`, and the kept rows in `state`, all as vec4s; and `spans`.
#import lanes/lane
#import batch

// 0: the mix weighs the previous token, 1: the current one.
override WEIGHS: u32 = 0u;
// Eights of elements of x, and how many a thread has: at most four.
override EIGHTS_OF_X: u32 = 1u;
override OWN: u32 = 1u;
override SUBGROUPS: u32 = 1u;
// Which of the state's two shift vectors.
override WHICH: u32 = 0u;
// Whether there is only one slot in a page, so that where its rows lie need not be looked up.
override ONE_SLOT: bool = false;

// Mean, sum of squares around it and number of elements of each subgroup.
var<workgroup> moments: array<vec3<f32>, SUBGROUPS>;

// Eight elements of everything that the mix is made of.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
    weight_low: vec4<f32>,
    weight_high: vec4<f32>,
    bias_low: vec4<f32>,
    bias_high: vec4<f32>,
    mix_low: vec4<f32>,
    mix_high: vec4<f32>,
    previous_low: vec4<f32>,
    previous_high: vec4<f32>,
}

// Those of a thread.
struct Eights {
    a: Eight,
    b: Eight,
    c: Eight,
    d: Eight,
}

// Eight elements of the normed row and of its mix.
struct Mixed {
    low: vec4<f32>,
    high: vec4<f32>,
    near: vec4<f32>,
    far: vec4<f32>,
}

// Where the state keeps the row before: its first vec4. Not `here`: of another slot, which is left alone.
struct Kept {
    here: bool,
    first: u32,
}

fn kept_row(page: Page) -> Kept {
    let slot = spans[0].slot;
    let here = in_page(page, slot);
    if ONE_SLOT {
        return Kept(here, WHICH * EIGHTS_OF_X * 2u);
    }
    let place = select(0u, slot - page.first_slot, here);
    return Kept(here, (place * 2u + WHICH) * EIGHTS_OF_X * 2u);
}

// `kept` and `mix` are the first vec4s of the row before and of the mix. Past the end the last eight is repeated.
fn load_eight(index: u32, kept: u32, mix: u32) -> Eight {
    let quad = 2u * min(index, EIGHTS_OF_X - 1u);
    let quads = EIGHTS_OF_X * 2u;
    return Eight(
        x[quad],
        x[quad + 1u],
        vectors[quad],
        vectors[quad + 1u],
        vectors[quads + quad],
        vectors[quads + quad + 1u],
        vectors[mix + quad],
        vectors[mix + quad + 1u],
        state[kept + quad],
        state[kept + quad + 1u],
    );
}

// Everything is asked for at once.
fn load_eights(thread: u32, kept: u32, mix: u32) -> Eights {
    var all: Eights;
    all.a = load_eight(thread, kept, mix);
    if OWN > 1u {
        all.b = load_eight(thread + WORKGROUP, kept, mix);
    }
    if OWN > 2u {
        all.c = load_eight(thread + 2u * WORKGROUP, kept, mix);
    }
    if OWN > 3u {
        all.d = load_eight(thread + 3u * WORKGROUP, kept, mix);
    }
    return all;
}

// Whether a thread's eight number `which` is there.
fn owns(thread: u32, which: u32) -> bool {
    return OWN > which && thread + which * WORKGROUP < EIGHTS_OF_X;
}

fn eight_sum(eight: Eight, own: bool) -> vec4<f32> {
    return select(vec4(0.0), eight.low + eight.high, own);
}

fn eight_squares(eight: Eight, mean: f32, own: bool) -> f32 {
    let low = eight.low - mean;
    let high = eight.high - mean;
    return select(0.0, dot(low, low) + dot(high, high), own);
}

// The mean of x, and what the norm multiplies by. Called by the whole workgroup.
fn mean_and_scale(all: Eights, lane: Lane, thread: u32, epsilon: f32) -> vec2<f32> {
    let own_a = owns(thread, 0u);
    let own_b = owns(thread, 1u);
    let own_c = owns(thread, 2u);
    let own_d = owns(thread, 3u);
    let number = 8.0 * f32(u32(own_a) + u32(own_b) + u32(own_c) + u32(own_d));
    let sums = (eight_sum(all.a, own_a) + eight_sum(all.b, own_b)) + (eight_sum(all.c, own_c) + eight_sum(all.d, own_d));
    let group_number = subgroupAdd(number);
    let group_mean = subgroupAdd((sums.x + sums.y) + (sums.z + sums.w)) / max(group_number, 1.0);
    let square = eight_squares(all.a, group_mean, own_a) + eight_squares(all.b, group_mean, own_b)
        + eight_squares(all.c, group_mean, own_c) + eight_squares(all.d, group_mean, own_d);
    let group_square = subgroupAdd(square);
    if lane.index == 0u {
        moments[lane.group] = vec3(group_mean, group_square, group_number);
    }
    workgroupBarrier();
    let count = f32(8u * EIGHTS_OF_X);
    // Every thread all of them: sums over the lanes of a subgroup took a microsecond longer.
    var mean = 0.0;
    for (var i = 0u; i < lane.groups; i++) {
        mean += moments[i].x * (moments[i].z / count);
    }
    var variance = 0.0;
    for (var i = 0u; i < lane.groups; i++) {
        let apart = moments[i].x - mean;
        variance += moments[i].y + moments[i].z * apart * apart;
    }
    return vec2(mean, 1.0 / sqrt(variance / count + epsilon));
}

fn mixed(normed: vec4<f32>, previous: vec4<f32>, mix: vec4<f32>) -> vec4<f32> {
    if WEIGHS == 1u {
        return previous + (normed - previous) * mix;
    }
    return normed + (previous - normed) * mix;
}

fn mix_eight(eight: Eight, norm: vec2<f32>) -> Mixed {
    let low = (eight.low - norm.x) * norm.y * eight.weight_low + eight.bias_low;
    let high = (eight.high - norm.x) * norm.y * eight.weight_high + eight.bias_high;
    return Mixed(
        low,
        high,
        mixed(low, eight.previous_low, eight.mix_low),
        mixed(high, eight.previous_high, eight.mix_high),
    );
}
