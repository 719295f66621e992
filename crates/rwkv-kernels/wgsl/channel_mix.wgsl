// The channel mix of one token in one dispatch: y += x + V f(K mix(norm(x), previous)), where the state keeps what the norm
// made of the token before. `y` is zero before, and lies elsewhere than x.
//
// A workgroup makes some rows of the key and multiplies the value's columns for them, which no other workgroup needs
// (channel_mix/columns, channel_mix/rows). What it adds to y are sums over its own inputs only, so that the order in which
// workgroups add theirs, and the last bits of y with it, differ from run to run.
//
// The last workgroup to have read the state stores the normed row there: what that rests on is in sparse_matvec.wgsl.
#import stream/rows
#import stream/mixed
#import activation
#import batch
#import grid
#ifdef VALUE_COLUMNS
#import channel_mix/columns
#else
#import channel_mix/rows
#endif

struct Params {
    page: Page,
    epsilon: f32,
    padding0: u32,
    padding1: u32,
    padding2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
// The norm's weight and bias, then the mix.
@group(0) @binding(3) var<storage, read> vectors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<atomic<f32>>;
// The first word counts the workgroups that have read the state, 0 between dispatches.
@group(0) @binding(6) var<storage, read_write> readers: array<atomic<u32>>;

// Rows of the key, and those of a workgroup: at most its threads.
override KEYS: u32 = 1u;
override OWN_KEYS: u32 = 1u;

// What the key made.
var<workgroup> keys: array<f32, OWN_KEYS>;
var<workgroup> earlier: u32;

fn emit(row: u32, sum: f32) {
    keys[row] = activate(sum);
}

// Eight elements of the normed row, and those of a thread.
struct Row {
    low: vec4<f32>,
    high: vec4<f32>,
}

struct Rows {
    a: Row,
    b: Row,
    c: Row,
    d: Row,
}

// Stages the mix of an eight.
fn place_eight(eight: Eight, index: u32, norm: vec2<f32>) -> Row {
    let made = mix_eight(eight, norm);
    stage_eight(0u, index, made.near, made.far);
    return Row(made.low, made.high);
}

fn store_row(row: Row, index: u32, kept: u32) {
    state[kept + 2u * index] = row.low;
    state[kept + 2u * index + 1u] = row.high;
}

// Makes the normed row the state, which nobody reads any more, and starts to count readers anew.
fn store_rows(rows: Rows, thread: u32, kept: u32) {
    storageBarrier();
    if thread == 0u {
        atomicStore(&readers[0], 0u);
    }
    if owns(thread, 0u) {
        store_row(rows.a, thread, kept);
    }
    if owns(thread, 1u) {
        store_row(rows.b, thread + WORKGROUP, kept);
    }
    if owns(thread, 2u) {
        store_row(rows.c, thread + 2u * WORKGROUP, kept);
    }
    if owns(thread, 3u) {
        store_row(rows.d, thread + 3u * WORKGROUP, kept);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let team = team_of(lane);
    let own = flat_workgroup(at);
    let first_key = own * OWN_KEYS;
    if first_key >= KEYS {
        return;
    }
    let rows = min(OWN_KEYS, KEYS - first_key);
    let work = Work(first_key, rows, 0u, 1u, 0u);
    let first = load_step(work, team, 0u, 0u);

    let place = kept_row(params.page);
    let quads = EIGHTS_OF_X * 2u;
    let eights = load_eights(at.thread, place.first, 2u * quads);
    let norm = mean_and_scale(eights, lane, at.thread, params.epsilon);
    var normed: Rows;
    if owns(at.thread, 0u) {
        normed.a = place_eight(eights.a, at.thread, norm);
    }
    if owns(at.thread, 1u) {
        normed.b = place_eight(eights.b, at.thread + WORKGROUP, norm);
    }
    if owns(at.thread, 2u) {
        normed.c = place_eight(eights.c, at.thread + 2u * WORKGROUP, norm);
    }
    if owns(at.thread, 3u) {
        normed.d = place_eight(eights.d, at.thread + 3u * WORKGROUP, norm);
    }
    storageBarrier();
    workgroupBarrier();
    if !place.here {
        return;
    }
    // Nobody waits for the count until the rows are made.
    var before = 0u;
    if at.thread == 0u {
        before = atomicAdd(&readers[0], 1u);
    }
    make_rows(work, lane, team, at.thread, first);
    let first_value = load_value(first_key, at.thread);
    if at.thread == 0u {
        earlier = before;
    }
    workgroupBarrier();
    let workgroups = (KEYS + OWN_KEYS - 1u) / OWN_KEYS;
    if earlier == workgroups - 1u {
        store_rows(normed, at.thread, place.first);
    }
    add_value(first_value, first_key, rows, lane, at.thread);
}

// The residual of element `row`, of which each workgroup adds its share.
fn residual_of(row: u32, own: u32) -> f32 {
    let workgroups = (KEYS + OWN_KEYS - 1u) / OWN_KEYS;
    if (row / 32u) % workgroups == own {
        return x[row / 4u][row % 4u];
    }
    return 0.0;
}
