// The channel mix of one token in one dispatch: y += x + V f(K mix(norm(x), previous)), where the state keeps what the norm
// made of the token before. `y` is zero before, and lies elsewhere than x.
//
// A workgroup makes some rows of the key, keeps those that are not zero in workgroup memory, and multiplies the value's
// columns for them, each of which lies together: no other workgroup needs them. What it adds to y are sums over its own
// inputs only, so that the order in which workgroups add theirs, and the last bits of y with it, differ from run to run.
//
// The last workgroup to have read the state stores the normed row there: what that rests on is in sparse_matvec.wgsl.
#import stream/rows
#import stream/mixed
#import activation
#import batch
#import grid

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
// The value by columns, as in columns.wgsl.
@group(2) @binding(0) var<storage, read> columns: array<vec4<u32>>;

// Rows of the key, and those of a workgroup: at most its threads.
override KEYS: u32 = 1u;
override OWN_KEYS: u32 = 1u;
// 16-byte units of a column; threads that share one, and how many of them there are.
override COLUMN_UNITS: u32 = 1u;
override COLUMN_THREADS: u32 = 1u;
override COLUMN_TEAMS: u32 = 1u;

// What the key made, then the rows of it that are not zero, and how many come before each subgroup's.
var<workgroup> keys: array<f32, OWN_KEYS>;
var<workgroup> listed: array<vec2<u32>, OWN_KEYS>;
var<workgroup> found: array<u32, SUBGROUPS>;
var<workgroup> earlier: u32;

fn emit(row: u32, sum: f32) {
    keys[row] = activate(sum);
}

// Lists the rows that are not zero, ascending, and returns how many there are. Called by the whole workgroup.
fn list_keys(first: u32, rows: u32, lane: Lane) -> u32 {
    let row = lane.group * lane.count + lane.index;
    var value = 0.0;
    if row < rows {
        value = keys[row];
    }
    // By its bits: −0 is zero, NaN and subnormal numbers are not.
    let counts = u32((bitcast<u32>(value) & 0x7fffffffu) != 0u);
    let before = subgroupExclusiveAdd(counts);
    if lane.index == lane.count - 1u {
        found[lane.group] = before + counts;
    }
    workgroupBarrier();
    var place = before;
    var all = 0u;
    for (var i = 0u; i < lane.groups; i++) {
        place += select(0u, found[i], i < lane.group);
        all += found[i];
    }
    if counts != 0u {
        listed[place] = vec2(first + row, bitcast<u32>(value));
    }
    workgroupBarrier();
    return all;
}

struct Sums {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn add_column(sums: Sums, packed: vec4<u32>, value: u32) -> Sums {
    let by = bitcast<f32>(value);
    return Sums(
        sums.low + vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)) * by,
        sums.high + vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)) * by,
    );
}

// One unit of the columns of the listed rows that a team has, four of them under way. Past the end the last one is read
// again, from a cache, and counts nothing: a branch around the sums would make each load wait for the one before it.
fn add_columns(unit: u32, team: u32, count: u32) -> Sums {
    var sums: Sums;
    for (var at = team; at < count; at += 4u * COLUMN_TEAMS) {
        let a = listed[at];
        let b = listed[min(at + COLUMN_TEAMS, count - 1u)];
        let c = listed[min(at + 2u * COLUMN_TEAMS, count - 1u)];
        let d = listed[min(at + 3u * COLUMN_TEAMS, count - 1u)];
        let column_a = columns[a.x * COLUMN_UNITS + unit];
        let column_b = columns[b.x * COLUMN_UNITS + unit];
        let column_c = columns[c.x * COLUMN_UNITS + unit];
        let column_d = columns[d.x * COLUMN_UNITS + unit];
        sums = add_column(sums, column_a, a.y);
        sums = add_column(sums, column_b, select(0u, b.y, at + COLUMN_TEAMS < count));
        sums = add_column(sums, column_c, select(0u, c.y, at + 2u * COLUMN_TEAMS < count));
        sums = add_column(sums, column_d, select(0u, d.y, at + 3u * COLUMN_TEAMS < count));
    }
    return sums;
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
    if at.thread == 0u {
        earlier = before;
    }
    workgroupBarrier();
    let workgroups = (KEYS + OWN_KEYS - 1u) / OWN_KEYS;
    if earlier == workgroups - 1u {
        store_rows(normed, at.thread, place.first);
    }
    let count = list_keys(first_key, rows, lane);

    // The sums of each team take the place of x.
    let column_team = at.thread / COLUMN_THREADS;
    if column_team < COLUMN_TEAMS {
        for (var unit = at.thread % COLUMN_THREADS; unit < COLUMN_UNITS; unit += COLUMN_THREADS) {
            let sums = add_columns(unit, column_team, count);
            staged[column_team * 2u * COLUMN_UNITS + unit] = bitcast<vec4<u32>>(sums.low);
            staged[(column_team * 2u + 1u) * COLUMN_UNITS + unit] = bitcast<vec4<u32>>(sums.high);
        }
    }
    workgroupBarrier();
    for (var i = at.thread; i < 8u * EIGHTS_OF_X; i += WORKGROUP) {
        var sum = 0.0;
        // Each workgroup adds its share of the residual.
        if (i / 32u) % workgroups == own {
            sum = x[i / 4u][i % 4u];
        }
        for (var t = 0u; t < COLUMN_TEAMS; t++) {
            sum += bitcast<f32>(staged[(t * 2u + i / 4u % 2u) * COLUMN_UNITS + i / 8u][i % 4u]);
        }
        atomicAdd(&y[i], sum);
    }
}
