// Teams of SHARE lanes of a subgroup: each lane has some keys of the team's ROWS rows.

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) group: u32,
}

// Threads numbered so that those of a subgroup follow each other.
fn thread_of(at: Invocation) -> u32 {
    return at.group * at.lanes + at.lane;
}

fn lane_of(at: Invocation) -> u32 {
    return at.lane;
}

// The sum over two lanes of one of two values: the upper lane's is `high`.
fn halved(low: f32, high: f32, apart: u32, upper: bool) -> f32 {
    return select(low, high, upper) + subgroupShuffleXor(select(high, low, upper), apart);
}

fn halved4(low: vec4<f32>, high: vec4<f32>, apart: u32, upper: bool) -> vec4<f32> {
    return select(low, high, upper) + subgroupShuffleXor(select(high, low, upper), apart);
}

// The sum over the lanes of a team of the value of the row that this lane answers for, see `own_row`. A row's terms are
// added in the same order whatever ROWS is.
fn row_sum(values: array<f32, ROWS>, part: u32) -> f32 {
    var sum = values[0];
#ifdef ROWS_2
    sum = halved(sum, values[1], SHARE / 2u, (part & (SHARE / 2u)) != 0u);
#endif
#ifdef ROWS_4
    let upper = (part & (SHARE / 2u)) != 0u;
    sum = halved(
        halved(sum, values[2], SHARE / 2u, upper),
        halved(values[1], values[3], SHARE / 2u, upper),
        SHARE / 4u,
        (part & (SHARE / 4u)) != 0u,
    );
#endif
    for (var apart = SHARE / ROWS / 2u; apart > 0u; apart /= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    return sum;
}

// Over the lanes that have other rows' terms, the same for four tokens.
fn halved_rows(values: array<vec4<f32>, ROWS>, part: u32) -> vec4<f32> {
    var sum = values[0];
#ifdef ROWS_2
    sum = halved4(sum, values[1], SHARE / 2u, (part & (SHARE / 2u)) != 0u);
#endif
#ifdef ROWS_4
    let upper = (part & (SHARE / 2u)) != 0u;
    sum = halved4(
        halved4(sum, values[2], SHARE / 2u, upper),
        halved4(values[1], values[3], SHARE / 2u, upper),
        SHARE / 4u,
        (part & (SHARE / 4u)) != 0u,
    );
#endif
    return sum;
}

// As row_sum for four tokens.
fn row_sum4(values: array<vec4<f32>, ROWS>, part: u32) -> vec4<f32> {
    var sum = halved_rows(values, part);
    for (var apart = SHARE / ROWS / 2u; apart > 0u; apart /= 2u) {
        sum += subgroupShuffleXor(sum, apart);
    }
    return sum;
}

// Lanes that answer for a row; of four tokens, each answers for so many, from `own_token` on, as do so many lanes.
const TURNS: u32 = SHARE / ROWS;
const EACH: u32 = max(1u, 4u / TURNS);
const SAME: u32 = max(1u, TURNS / 4u);

fn own_token(part: u32) -> u32 {
    return part % TURNS / SAME * EACH;
}

// As row_sum4, of the tokens only that this lane answers for.
fn own_sum4(values: array<vec4<f32>, ROWS>, part: u32) -> array<f32, EACH> {
    let sum = halved_rows(values, part);
    let late = (part & (TURNS / 2u)) != 0u;
    let first = halved(sum.x, sum.z, TURNS / 2u, late);
    let second = halved(sum.y, sum.w, TURNS / 2u, late);
    var own: array<f32, EACH>;
    if EACH == 2u {
        own[0] = first;
        own[EACH - 1u] = second;
        return own;
    }
    own[0] = halved(first, second, TURNS / 4u, (part & (TURNS / 4u)) != 0u);
    for (var apart = SAME / 2u; apart > 0u; apart /= 2u) {
        own[0] += subgroupShuffleXor(own[0], apart);
    }
    return own;
}

// What the lanes that answer for the team's `row` have.
fn of_row(value: f32, row: u32, lane: u32) -> f32 {
#ifdef ROWS_1
    return value;
#else
    return subgroupShuffle(value, lane / SHARE * SHARE + row * (SHARE / ROWS));
#endif
}

fn of_row4(value: vec4<f32>, row: u32, lane: u32) -> vec4<f32> {
#ifdef ROWS_1
    return value;
#else
    return subgroupShuffle(value, lane / SHARE * SHARE + row * (SHARE / ROWS));
#endif
}

// Lanes whose terms of dots between vectors are added up at once, in every team.
const SUMMED: u32 = 8u;

// The sum over SUMMED lanes of values[part], with part a lane's place among them.
fn sum_of_8(values: array<vec4<f32>, SUMMED>, part: u32) -> vec4<f32> {
    let upper = (part & 4u) != 0u;
    let a = halved4(values[0], values[4], 4u, upper);
    let b = halved4(values[1], values[5], 4u, upper);
    let c = halved4(values[2], values[6], 4u, upper);
    let d = halved4(values[3], values[7], 4u, upper);
    let second = (part & 2u) != 0u;
    return halved4(halved4(a, c, 2u, second), halved4(b, d, 2u, second), 1u, (part & 1u) != 0u);
}

// That of values[part / 2].
fn sum_of_4(values: mat4x4<f32>, part: u32) -> vec4<f32> {
    let upper = (part & 4u) != 0u;
    let a = halved4(values[0], values[2], 4u, upper);
    let b = halved4(values[1], values[3], 4u, upper);
    let sum = halved4(a, b, 2u, (part & 2u) != 0u);
    return sum + subgroupShuffleXor(sum, 1u);
}
