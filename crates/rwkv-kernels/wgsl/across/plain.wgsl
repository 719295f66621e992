// What the threads of a workgroup of SIZE know of each other, through workgroup memory alone.
#import invocation
#import across/prefix

var<workgroup> counts: array<u32, SIZE>;

fn thread_of(at: Invocation) -> u32 {
    return at.thread;
}

// Called by the whole workgroup.
fn prefix(count: u32, at: Invocation) -> Prefix {
    workgroupBarrier();
    counts[at.thread] = count;
    workgroupBarrier();
    for (var apart = 1u; apart < SIZE; apart *= 2u) {
        var earlier = 0u;
        if at.thread >= apart {
            earlier = counts[at.thread - apart];
        }
        workgroupBarrier();
        counts[at.thread] += earlier;
        workgroupBarrier();
    }
    return Prefix(counts[at.thread] - count, counts[SIZE - 1u]);
}

// Adds eight sums a thread up over the threads whose numbers agree modulo `columns` (a power of two): `scratch` gets
// eight sums for each column, once, and the result is that once. Called by the whole workgroup.
fn gather(sums: Eight, columns: u32, at: Invocation) -> u32 {
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        scratch[at.thread * 8u + i] = bitcast<u32>(sums.low[i]);
        scratch[at.thread * 8u + 4u + i] = bitcast<u32>(sums.high[i]);
    }
    for (var half = SIZE / 2u; half >= columns; half /= 2u) {
        workgroupBarrier();
        if at.thread < half {
            for (var i = 0u; i < 8u; i++) {
                let place = at.thread * 8u + i;
                let sum = bitcast<f32>(scratch[place]) + bitcast<f32>(scratch[place + half * 8u]);
                scratch[place] = bitcast<u32>(sum);
            }
        }
    }
    workgroupBarrier();
    return 1u;
}
