// Several products of one matrix stack, and of a second one in F16 with the same columns, in one dispatch: each segment
// of rows has its own x, function and place for its results. A workgroup makes a block of rows of one segment.
#import rows
#import activation
#import grid

struct Segment {
    // 0: `weights`, 1: `pairs`; its rows there.
    stack: u32,
    first_row: u32,
    rows: u32,
    // Where its x begins, in vec4s.
    x: u32,
    // Where its results begin, and the distance between those of two tokens, in elements.
    y: u32,
    y_stride: u32,
    // As in activation.wgsl.
    function_code: u32,
    padding: u32,
}

struct Params {
    cols: u32,
    // Units of a row of `weights`, and of `pairs`.
    units: u32,
    pair_units: u32,
    tokens: u32,
    // Between tokens of x, in vec4s.
    x_stride: u32,
    // Parts of x that are staged at a time, or all of them.
    chunk: u32,
    count: u32,
    padding: u32,
    segments: array<Segment, 8>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(2) @binding(0) var<storage, read> pairs: array<vec4<u32>>;

// Whether the last unit of a row may reach past the last column.
override RAGGED: bool = false;

// Parts of x that a unit of F16 meets.
const PAIR_PARTS: u32 = 2u;

var<private> x_start: u32;

fn global_x(token: u32, part: u32) -> vec4<f32> {
    // Tokens past the last repeat it.
    let source = x_start + min(token, params.tokens - 1u) * params.x_stride + part;
    if RAGGED {
        let left = vec4(4u * part) + vec4(0u, 1u, 2u, 3u);
        return select(vec4(0.0), x[source], left < vec4(params.cols));
    }
    return x[source];
}

// Parts `first .. end` of every token's x to workgroup memory. Called by the whole workgroup.
fn stage_x(first: u32, end: u32, thread: u32) {
    workgroupBarrier();
    for (var part = first + thread; part < end; part += WORKGROUP) {
        for (var token = 0u; token < TOKENS; token++) {
            stage(token, part - first, global_x(token, part));
        }
    }
    workgroupBarrier();
}

// As `accumulate`, of `pairs`; staged x begins with part `start`.
fn accumulate_pairs(team: Team, rows: TeamRows, start: u32, end: u32, sums: ptr<function, Sums>) {
    for (var base = start / PAIR_PARTS + team.member; base < end; base += team.members * UNROLL) {
        var raw: array<vec4<u32>, MAX_ROWS * MAX_UNROLL>;
        for (var u = 0u; u < UNROLL; u++) {
            let unit = min(base + u * team.members, end - 1u);
            for (var r = 0u; r < ROWS; r++) {
                raw[u * MAX_ROWS + r] = pairs[team_row(rows, r) * params.pair_units + unit];
            }
        }
        for (var u = 0u; u < UNROLL; u++) {
            let unit = base + u * team.members;
            if unit < end {
                for (var token = 0u; token < TOKENS; token++) {
                    let near = x_part(token, unit * PAIR_PARTS, start);
                    let far = x_part(token, unit * PAIR_PARTS + 1u, start);
                    for (var r = 0u; r < ROWS; r++) {
                        let packed = raw[u * MAX_ROWS + r];
                        let slot = r * MAX_TOKENS + token;
                        let half = dot_onto(
                            (*sums)[slot],
                            vec4(unpack2x16float(packed.x), unpack2x16float(packed.y)),
                            near,
                        );
                        (*sums)[slot] = dot_onto(
                            half,
                            vec4(unpack2x16float(packed.z), unpack2x16float(packed.w)),
                            far,
                        );
                    }
                }
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let team = team_of(lane);
    let block_rows = team.teams * ROWS;
    // The segment of this workgroup's block.
    var block = flat_workgroup(at);
    var index = 0u;
    while index < params.count {
        let blocks = (params.segments[index].rows + block_rows - 1u) / block_rows;
        if block < blocks {
            break;
        }
        block -= blocks;
        index++;
    }
    if index == params.count {
        return;
    }
    let segment = params.segments[index];
    x_start = segment.x;
    let first_row = segment.first_row + block * block_rows;
    let rows = TeamRows(first_row + team.number, team.teams, segment.first_row + segment.rows - 1u);
    let parts = max(params.units * PARTS, params.pair_units * PAIR_PARTS);
    var sums = Sums();
    for (var first = 0u; first < parts; first += params.chunk) {
        let end = min(first + params.chunk, parts);
        if STAGED {
            stage_x(first, end, at.thread);
        }
        if segment.stack == 0u {
            accumulate(team, rows, first / PARTS, min(end / PARTS, params.units), params.units, &sums);
        } else {
            accumulate_pairs(team, rows, first, min(end / PAIR_PARTS, params.pair_units), &sums);
        }
    }
    share_sums(lane, at.thread, &sums);
    for (var i = at.thread; i < TOKENS * block_rows; i += WORKGROUP) {
        let token = i / block_rows;
        let place = i % block_rows;
        let row = block * block_rows + place;
        if token < params.tokens && row < segment.rows {
            let sum = team_sum(lane, team.teams, place % team.teams, place / team.teams, token);
            y[segment.y + token * segment.y_stride + row] = apply_function(segment.function_code, sum);
        }
    }
}
