// The value by columns: those for keys that are zero are skipped. Each column lies together, as in columns.wgsl.

@group(2) @binding(0) var<storage, read> columns: array<vec4<u32>>;

// 16-byte units of a column; threads that share one, and how many of them there are.
override COLUMN_UNITS: u32 = 1u;
override COLUMN_THREADS: u32 = 1u;
override COLUMN_TEAMS: u32 = 1u;

// The rows that are not zero with what the key made of them, and how many come before each subgroup's.
var<workgroup> listed: array<vec2<u32>, OWN_KEYS>;
var<workgroup> found: array<u32, SUBGROUPS>;

// Which columns are needed is not known before.
struct FirstOfValue {
    nothing: u32,
}

fn load_value(first: u32, thread: u32) -> FirstOfValue {
    return FirstOfValue(0u);
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

// One unit of the columns of the listed rows that a team has, eight of them under way. Past the end the last one is read
// again, from a cache, and counts nothing: a branch around the sums would make each load wait for the one before it.
fn add_columns(unit: u32, team: u32, count: u32) -> Sums {
    var sums: Sums;
    for (var at = team; at < count; at += 8u * COLUMN_TEAMS) {
#repeat i 8
        let row_$i = listed[min(at + u32($i) * COLUMN_TEAMS, count - 1u)];
#endrepeat
#repeat i 8
        let column_$i = columns[row_$i.x * COLUMN_UNITS + unit];
#endrepeat
#repeat i 8
        sums = add_column(sums, column_$i, select(0u, row_$i.y, at + u32($i) * COLUMN_TEAMS < count));
#endrepeat
    }
    return sums;
}

// Adds the products of the keys from `first` on.
fn add_value(ahead: FirstOfValue, first: u32, rows: u32, lane: Lane, thread: u32) {
    let count = list_keys(first, rows, lane);
    // The sums of each team take the place of x.
    let column_team = thread / COLUMN_THREADS;
    if column_team < COLUMN_TEAMS {
        for (var unit = thread % COLUMN_THREADS; unit < COLUMN_UNITS; unit += COLUMN_THREADS) {
            let sums = add_columns(unit, column_team, count);
            staged[column_team * 2u * COLUMN_UNITS + unit] = bitcast<vec4<u32>>(sums.low);
            staged[(column_team * 2u + 1u) * COLUMN_UNITS + unit] = bitcast<vec4<u32>>(sums.high);
        }
    }
    workgroupBarrier();
    // Workgroups begin apart: where all began with the same element, their atomic additions would meet.
    let own = first / OWN_KEYS;
    let turn = own * 32u % (8u * EIGHTS_OF_X);
    for (var place = thread; place < 8u * EIGHTS_OF_X; place += WORKGROUP) {
        let turned = place + turn;
        let i = select(turned, turned - 8u * EIGHTS_OF_X, turned >= 8u * EIGHTS_OF_X);
        var sum = residual_of(i, own);
        for (var t = 0u; t < COLUMN_TEAMS; t++) {
            sum += bitcast<f32>(staged[(t * 2u + i / 4u % 2u) * COLUMN_UNITS + i / 8u][i % 4u]);
        }
        atomicAdd(&y[i], sum);
    }
}
