// Dot products of rows of a packed matrix with the x of up to MAX_TOKENS tokens: what every matrix-vector kernel does.
//
// A workgroup makes a block of rows. Its lanes (lanes/) are split into teams of SPLIT groups of lanes; a team makes ROWS
// rows, reading each weight once for all tokens, UNROLL units a lane and row at a time so that many loads are under way.
// x is read where it lies, or from workgroup memory, where it is swizzled: the lanes of a team read x a unit apart, and
// 128 bytes apart, as codes of 4 bits are, they would all meet in one bank (and outside touch a cache line each).
//
// Whoever imports this defines `global_x(token, part)`: elements `4 * part ..` of a token's x.
#import formats/$FORMAT
#import lanes/$LANES
#import lanes/team

const MAX_TOKENS: u32 = 8u;
const MAX_ROWS: u32 = 4u;
const MAX_UNROLL: u32 = 4u;

override TOKENS: u32 = 1u;
override ROWS: u32 = 1u;
override UNROLL: u32 = 1u;
override STAGED: bool = false;
// vec4s of workgroup memory for the x of a token (a multiple of 8) and of all of them.
override X_PITCH: u32 = 1u;
override X_PARTS: u32 = 1u;
// One a row, token and group of lanes; a subgroup has at least 4.
override PARTIALS: u32 = 256u;

var<workgroup> staged: array<vec4<f32>, X_PARTS>;
var<workgroup> partials: array<f32, PARTIALS>;

alias Sums = array<f32, MAX_ROWS * MAX_TOKENS>;

// The rows that a team makes: every `step`-th from `first` on, repeating the last one past the end.
struct TeamRows {
    first: u32,
    step: u32,
    last: u32,
}

fn team_row(rows: TeamRows, r: u32) -> u32 {
    return min(rows.first + r * rows.step, rows.last);
}

fn swizzled(part: u32) -> u32 {
    return part ^ ((part >> 3u) & (PARTS - 1u));
}

fn stage(token: u32, part: u32, value: vec4<f32>) {
    staged[token * X_PITCH + swizzled(part)] = value;
}

// Part `part` of a token's x, where staged memory begins with part `start`.
fn x_part(token: u32, part: u32, start: u32) -> vec4<f32> {
    if STAGED {
        return staged[token * X_PITCH + swizzled(part - start)];
    }
    return global_x(token, part);
}

// One sum after the other, so that each is one fused multiply-add.
fn dot_onto(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return a.w * b.w + (a.z * b.z + (a.y * b.y + (a.x * b.x + sum)));
}

// Adds units `first .. end` of the team's rows to `sums`; staged x begins with unit `first`.
fn accumulate(team: Team, rows: TeamRows, first: u32, end: u32, units: u32, sums: ptr<function, Sums>) {
    for (var base = first + team.member; base < end; base += team.members * UNROLL) {
        var raw: array<Unit, MAX_ROWS * MAX_UNROLL>;
        for (var u = 0u; u < UNROLL; u++) {
            // Past the end, the last unit again: no branch stands between two loads.
            let unit = min(base + u * team.members, end - 1u);
            for (var r = 0u; r < ROWS; r++) {
                raw[u * MAX_ROWS + r] = load_unit(team_row(rows, r), unit, units);
            }
        }
        for (var u = 0u; u < UNROLL; u++) {
            let unit = base + u * team.members;
            if unit < end {
                var values: array<array<vec4<f32>, PARTS>, MAX_ROWS>;
                var scales: array<vec4<f32>, MAX_ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    values[r] = unit_values(raw[u * MAX_ROWS + r]);
                    scales[r] = unit_scales(raw[u * MAX_ROWS + r], unit);
                }
                for (var token = 0u; token < TOKENS; token++) {
                    // The dot products of the two halves of the unit: scaled once, not element by element.
                    var near: array<f32, MAX_ROWS>;
                    var far: array<f32, MAX_ROWS>;
                    var near_x = 0.0;
                    var far_x = 0.0;
                    for (var part = 0u; part < PARTS; part++) {
                        let value = x_part(token, unit * PARTS + part, first * PARTS);
                        let second = SCALES == 2u && part >= PARTS / 2u;
                        if MINIMA {
                            let sum = (value.x + value.y) + (value.z + value.w);
                            if second {
                                far_x += sum;
                            } else {
                                near_x += sum;
                            }
                        }
                        for (var r = 0u; r < ROWS; r++) {
                            if second {
                                far[r] = dot_onto(far[r], values[r][part], value);
                            } else {
                                near[r] = dot_onto(near[r], values[r][part], value);
                            }
                        }
                    }
                    for (var r = 0u; r < ROWS; r++) {
                        let slot = r * MAX_TOKENS + token;
                        if SCALES == 0u {
                            (*sums)[slot] += near[r];
                        } else {
                            var sum = scales[r].x * near[r];
                            if SCALES == 2u {
                                sum += scales[r].y * far[r];
                            }
                            if MINIMA {
                                sum += scales[r].z * near_x;
                                if SCALES == 2u {
                                    sum += scales[r].w * far_x;
                                }
                            }
                            (*sums)[slot] += sum;
                        }
                    }
                }
            }
        }
    }
}

// Puts the sums of every lane group where `team_sum` finds them. Called by the whole workgroup.
fn share_sums(lane: Lane, thread: u32, sums: ptr<function, Sums>) {
    for (var r = 0u; r < ROWS; r++) {
        for (var token = 0u; token < TOKENS; token++) {
            let sum = lanes_add((*sums)[r * MAX_TOKENS + token], thread);
            if lane.index == 0u {
                partials[(r * TOKENS + token) * lane.groups + lane.group] = sum;
            }
        }
    }
    workgroupBarrier();
}

// The sum over a team's lanes for its row `r`.
fn team_sum(lane: Lane, teams: u32, number: u32, r: u32, token: u32) -> f32 {
    let split = lane.groups / teams;
    let first = (r * TOKENS + token) * lane.groups + number * split;
    var sum = 0.0;
    for (var i = 0u; i < split; i++) {
        sum += partials[first + i];
    }
    return sum;
}
