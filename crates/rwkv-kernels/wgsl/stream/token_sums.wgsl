// Sums of four rows for each of TOKENS tokens, and how the lanes of a team add theirs up: in each round a lane keeps half
// of what it has and gives the other half to its partner, so that all sums take about as many shuffles as there are sums.

// 2, 4, 8 or 16.
override TOKENS: u32 = 2u;
// Lanes of a team: a power of two from 4 to the smallest subgroup.
override MEMBERS: u32 = 4u;
// Whether a team's lanes lie apart from each other: neighbours then are of different teams, and meet the same x.
override APART: bool = false;

// The sums of each token. Members and not an array, as in work.wgsl; those past TOKENS are never used.
struct Sums {
    t0: vec4<f32>,
    t1: vec4<f32>,
    t2: vec4<f32>,
    t3: vec4<f32>,
    t4: vec4<f32>,
    t5: vec4<f32>,
    t6: vec4<f32>,
    t7: vec4<f32>,
    t8: vec4<f32>,
    t9: vec4<f32>,
    t10: vec4<f32>,
    t11: vec4<f32>,
    t12: vec4<f32>,
    t13: vec4<f32>,
    t14: vec4<f32>,
    t15: vec4<f32>,
}

struct Place {
    // This lane's place in its team, and the distance to the next member.
    member: u32,
    distance: u32,
    // The team's place among those of the workgroup.
    team: u32,
}

fn place_of(lane: Lane) -> Place {
    let teams = lane.count / MEMBERS;
    if APART {
        return Place(lane.index / teams, teams, lane.group * teams + lane.index % teams);
    }
    return Place(lane.index % MEMBERS, 1u, lane.group * teams + lane.index / MEMBERS);
}

// What a lane has in the end: `rows` rows from `row` on of tokens `token ..`, in t0 .. t3, or nothing where others have it.
struct Held {
    token: u32,
    row: u32,
    rows: u32,
    tokens: u32,
}

// One of two values of this lane and its partner: the first for the lower one of them.
fn halve(first: vec4<f32>, second: vec4<f32>, distance: u32, upper: bool) -> vec4<f32> {
    return select(first, second, upper) + subgroupShuffleXor(select(second, first, upper), distance);
}

fn team_sums(place: Place, sums: ptr<function, Sums>) -> Held {
    var held = Held(0u, 0u, 4u, TOKENS);
    var bit = 1u;
    var distance = place.distance;
    if TOKENS > 8u {
        let upper = (place.member & bit) != 0u;
        (*sums).t0 = halve((*sums).t0, (*sums).t8, distance, upper);
        (*sums).t1 = halve((*sums).t1, (*sums).t9, distance, upper);
        (*sums).t2 = halve((*sums).t2, (*sums).t10, distance, upper);
        (*sums).t3 = halve((*sums).t3, (*sums).t11, distance, upper);
        (*sums).t4 = halve((*sums).t4, (*sums).t12, distance, upper);
        (*sums).t5 = halve((*sums).t5, (*sums).t13, distance, upper);
        (*sums).t6 = halve((*sums).t6, (*sums).t14, distance, upper);
        (*sums).t7 = halve((*sums).t7, (*sums).t15, distance, upper);
        held.token += select(0u, 8u, upper);
        held.tokens = 8u;
        bit *= 2u;
        distance *= 2u;
    }
    if TOKENS > 4u {
        let upper = (place.member & bit) != 0u;
        (*sums).t0 = halve((*sums).t0, (*sums).t4, distance, upper);
        (*sums).t1 = halve((*sums).t1, (*sums).t5, distance, upper);
        (*sums).t2 = halve((*sums).t2, (*sums).t6, distance, upper);
        (*sums).t3 = halve((*sums).t3, (*sums).t7, distance, upper);
        held.token += select(0u, 4u, upper);
        held.tokens = 4u;
        bit *= 2u;
        distance *= 2u;
    }
    if TOKENS > 2u && bit < MEMBERS {
        let upper = (place.member & bit) != 0u;
        (*sums).t0 = halve((*sums).t0, (*sums).t2, distance, upper);
        (*sums).t1 = halve((*sums).t1, (*sums).t3, distance, upper);
        held.token += select(0u, 2u, upper);
        held.tokens = 2u;
        bit *= 2u;
        distance *= 2u;
    }
    if bit < MEMBERS {
        let upper = (place.member & bit) != 0u;
        (*sums).t0 = halve((*sums).t0, (*sums).t1, distance, upper);
        held.token += select(0u, 1u, upper);
        held.tokens = 1u;
        bit *= 2u;
        distance *= 2u;
    }
    var all = (*sums).t0;
    if bit < MEMBERS {
        let upper = (place.member & bit) != 0u;
        let given = subgroupShuffleXor(select(all.zw, all.xy, upper), distance);
        all = vec4(select(all.xy, all.zw, upper) + given, 0.0, 0.0);
        held.row = select(0u, 2u, upper);
        held.rows = 2u;
        bit *= 2u;
        distance *= 2u;
    }
    if bit < MEMBERS {
        let upper = (place.member & bit) != 0u;
        all.x = select(all.x, all.y, upper) + subgroupShuffleXor(select(all.y, all.x, upper), distance);
        held.row += select(0u, 1u, upper);
        held.rows = 1u;
        bit *= 2u;
        distance *= 2u;
    }
    // What is one number in all lanes of a team that differ in the bits from here on.
    let others = place.member / bit;
    for (; bit < MEMBERS; bit *= 2u) {
        all.x += subgroupShuffleXor(all.x, distance);
        distance *= 2u;
    }
    (*sums).t0 = all;
    if others != 0u {
        held.tokens = 0u;
    }
    return held;
}

fn emit_token(first: u32, rows: u32, held: Held, number: u32, sums: vec4<f32>) {
    let row = first + held.row;
    let token = held.token + number;
    if number >= held.tokens || token >= token_count() || row >= rows {
        return;
    }
    emit(row, token, sums.x);
    if held.rows > 1u && row + 1u < rows {
        emit(row + 1u, token, sums.y);
    }
    if held.rows > 2u && row + 2u < rows {
        emit(row + 2u, token, sums.z);
    }
    if held.rows > 2u && row + 3u < rows {
        emit(row + 3u, token, sums.w);
    }
}

// Adds the team's sums up for four rows from `first` on, of `rows` in all, and emits them.
fn emit_sums(place: Place, first: u32, rows: u32, sums: ptr<function, Sums>) {
    let held = team_sums(place, sums);
    emit_token(first, rows, held, 0u, (*sums).t0);
    // Teams of four, or of 16 tokens and eight lanes, have more sums than lanes and rows.
    if TOKENS > MEMBERS {
        emit_token(first, rows, held, 1u, (*sums).t1);
    }
    if TOKENS > 2u * MEMBERS {
        emit_token(first, rows, held, 2u, (*sums).t2);
        emit_token(first, rows, held, 3u, (*sums).t3);
    }
}
