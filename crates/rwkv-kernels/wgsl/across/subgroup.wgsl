// What the threads of a workgroup of SIZE know of each other, through subgroup operations first.
struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) group: u32,
    @builtin(num_subgroups) groups: u32,
}

#import across/prefix

// No subgroup has fewer than four lanes.
var<workgroup> counts: array<u32, SIZE / 4u>;

// Threads numbered so that those of a subgroup follow each other.
fn thread_of(at: Invocation) -> u32 {
    return at.group * at.lanes + at.lane;
}

// Called by the whole workgroup.
fn prefix(count: u32, at: Invocation) -> Prefix {
    let before = subgroupExclusiveAdd(count);
    let all = subgroupAdd(count);
    workgroupBarrier();
    if at.lane == 0u {
        counts[at.group] = all;
    }
    workgroupBarrier();
    var earlier = 0u;
    var total = 0u;
    for (var group = at.lane; group < at.groups; group += at.lanes) {
        let found = counts[group];
        earlier += select(0u, found, group < at.group);
        total += found;
    }
    return Prefix(before + subgroupAdd(earlier), subgroupAdd(total));
}

// Adds eight sums a thread up over the threads whose numbers agree modulo `columns` (a power of two, at most the lanes),
// as far as subgroups reach: `scratch` gets eight sums for each column, one subgroup after the other, and the result is
// how many subgroups there are. Called by the whole workgroup.
fn gather(sums: Eight, columns: u32, at: Invocation) -> u32 {
    var low = sums.low;
    var high = sums.high;
    for (var apart = columns; apart < at.lanes; apart *= 2u) {
        low += subgroupShuffleXor(low, apart);
        high += subgroupShuffleXor(high, apart);
    }
    workgroupBarrier();
    if at.lane < columns {
        let place = (at.group * columns + at.lane) * 8u;
        for (var i = 0u; i < 4u; i++) {
            scratch[place + i] = bitcast<u32>(low[i]);
            scratch[place + 4u + i] = bitcast<u32>(high[i]);
        }
    }
    workgroupBarrier();
    return at.groups;
}
