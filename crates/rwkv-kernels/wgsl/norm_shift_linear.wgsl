// y = f(W x), where x is between the layer norm of a token and that of the token before it in its sequence, which the
// state keeps. Every span has one token. Each workgroup makes x for itself, in workgroup memory, and then many rows.
#import rows
#import activation
#import batch
#import grid

struct Params {
    page: Page,
    // Rows of this part of the matrix, the number of the first one in the whole, and its place in the bound weights.
    rows: u32,
    first_row: u32,
    base: u32,
    units: u32,
    cols: u32,
    tokens: u32,
    // Between tokens: in vec4s for the residual, in elements for y.
    x_stride: u32,
    y_stride: u32,
    // Which of the state's two shift vectors.
    which: u32,
    // vec4s of the shift vector that each workgroup writes.
    slice: u32,
    epsilon: f32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
// The norm's weight and bias, and the mix.
@group(0) @binding(3) var<storage, read> vectors: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<f32>;
// The layer norm: what the state keeps next.
@group(0) @binding(5) var<storage, read_write> shifted: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// 0: the mix weighs the previous token, 1: the current one.
override WEIGHS: u32 = 0u;

// All of x is staged.
fn global_x(token: u32, part: u32) -> vec4<f32> {
    return vec4(0.0);
}

// Four neighbours of a vector from element `first + column` on, where `column` may pass the last column.
fn four_vectors(first: u32, column: vec4<u32>) -> vec4<f32> {
    let at = vec4(first) + column;
    return vec4(vectors[at.x], vectors[at.y], vectors[at.z], vectors[at.w]);
}

fn four_states(first: u32, column: vec4<u32>) -> vec4<f32> {
    let at = vec4(first) + column;
    return vec4(state[at.x], state[at.y], state[at.z], state[at.w]);
}

// Each token's sum over the workgroup, known to all threads. Called by the whole workgroup.
fn workgroup_sums(lane: Lane, thread: u32, values: ptr<function, array<f32, MAX_TOKENS>>) {
    workgroupBarrier();
    for (var token = 0u; token < TOKENS; token++) {
        let sum = lanes_add((*values)[token], thread);
        if lane.index == 0u {
            partials[token * lane.groups + lane.group] = sum;
        }
    }
    workgroupBarrier();
    for (var token = 0u; token < TOKENS; token++) {
        var sum = 0.0;
        for (var i = 0u; i < lane.groups; i++) {
            sum += partials[token * lane.groups + i];
        }
        (*values)[token] = sum;
    }
}

// Fills workgroup memory with every token's x. The variance is that around the mean just found.
fn prepare(lane: Lane, thread: u32, own: u32) {
    let parts = params.units * PARTS;
    let lanes = vec4(0u, 1u, 2u, 3u);
    var sums: array<f32, MAX_TOKENS>;
    for (var part = thread; part < parts; part += WORKGROUP) {
        let there = vec4(4u * part) + lanes < vec4(params.cols);
        for (var token = 0u; token < TOKENS; token++) {
            let source = min(token, params.tokens - 1u);
            let value = select(vec4(0.0), x[source * params.x_stride + part], there);
            stage(token, part, value);
            sums[token] += (value.x + value.y) + (value.z + value.w);
        }
    }
    workgroup_sums(lane, thread, &sums);
    var means: array<f32, MAX_TOKENS>;
    for (var token = 0u; token < TOKENS; token++) {
        means[token] = sums[token] / f32(params.cols);
        sums[token] = 0.0;
    }
    for (var part = thread; part < parts; part += WORKGROUP) {
        let there = vec4(4u * part) + lanes < vec4(params.cols);
        for (var token = 0u; token < TOKENS; token++) {
            let d = select(vec4(0.0), x_part(token, part, 0u) - means[token], there);
            sums[token] += dot(d, d);
        }
    }
    workgroup_sums(lane, thread, &sums);
    for (var part = thread; part < parts; part += WORKGROUP) {
        let there = vec4(4u * part) + lanes < vec4(params.cols);
        let column = min(vec4(4u * part) + lanes, vec4(params.cols - 1u));
        let weight = four_vectors(0u, column);
        let bias = four_vectors(params.cols, column);
        let mix = four_vectors(2u * params.cols, column);
        for (var token = 0u; token < TOKENS; token++) {
            let slot = spans[min(token, params.tokens - 1u)].slot;
            var previous = vec4(0.0);
            if in_page(params.page, slot) {
                let row = (slot - params.page.first_slot) * 2u + params.which;
                previous = four_states(row * params.cols, column);
            }
            let scale = 1.0 / sqrt(sums[token] / f32(params.cols) + params.epsilon);
            let current = (x_part(token, part, 0u) - means[token]) * scale * weight + bias;
            var mixed = current + (previous - current) * mix;
            if WEIGHS == 1u {
                mixed = previous + (current - previous) * mix;
            }
            stage(token, part, select(vec4(0.0), mixed, there));
            let mine = params.slice > 0u && part >= own * params.slice && part < (own + 1u) * params.slice;
            if mine && token < params.tokens && in_page(params.page, slot) && any(there) {
                shifted[token * params.x_stride + part] = current;
            }
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let team = team_of(lane);
    let block_rows = team.teams * ROWS;
    let own = flat_workgroup(at);
    prepare(lane, at.thread, own);
    for (var block = own; block * block_rows < params.rows; block += at.workgroups.x * at.workgroups.y) {
        let first = params.base + block * block_rows;
        let rows = TeamRows(first + team.number, team.teams, params.base + params.rows - 1u);
        var sums = Sums();
        accumulate(team, rows, 0u, params.units, params.units, &sums);
        share_sums(lane, at.thread, &sums);
        for (var i = at.thread; i < TOKENS * block_rows; i += WORKGROUP) {
            let token = i / block_rows;
            let place = i % block_rows;
            let row = block * block_rows + place;
            if token < params.tokens && row < params.rows && in_page(params.page, spans[token].slot) {
                let sum = team_sum(lane, team.teams, place % team.teams, place / team.teams, token);
                y[token * params.y_stride + params.first_row + row] = activate(sum);
            }
        }
        workgroupBarrier();
    }
}
