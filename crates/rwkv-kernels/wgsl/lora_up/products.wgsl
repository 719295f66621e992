// The sums of a tile, in the middle of an entry point: drivers keep arrays of matrices in memory, so that they are variables
// with names. Each of the workgroup's subgroups, two beside each other, has HIGH × WIDE matrices; a thread brings X_LOADS and
// W_LOADS fours for the STEPS matrices that a step is deep, while those before are multiplied.
    let pair = params.pairs[workgroup.z];
    let first_channel = workgroup.x * CHANNELS;
    let first_token = workgroup.y * TOKENS;
    let token = subgroup / 2u * ($HIGH * SIDE);
    let channel = subgroup % 2u * ($WIDE * SIDE);
    let to = thread / QUADS * PITCH + thread % QUADS;
#repeat i $HIGH
#repeat j $WIDE
    var sum_$i$j: coop_mat16x16<f32, C>;
#endrepeat
#endrepeat
    {
#repeat i $X_LOADS
        let x_$i = fetch_x(pair, first_token, 0u, $i * THREADS + thread);
#endrepeat
#repeat i $W_LOADS
        let w_$i = fetch_w(pair, first_channel, 0u, $i * THREADS + thread);
#endrepeat
#repeat i $X_LOADS
        x_tile[to + $i * (THREADS / QUADS) * PITCH] = rounded(x_$i);
#endrepeat
#repeat i $W_LOADS
        w_tile[to + $i * (THREADS / QUADS) * PITCH] = w_$i;
#endrepeat
    }
    workgroupBarrier();
    for (var unit = 0u; unit < pair.units; unit += UNITS) {
        // At the end the last ones are loaded again.
        let next = min(unit + UNITS, pair.units - 1u);
#repeat i $X_LOADS
        let x_$i = fetch_x(pair, first_token, next, $i * THREADS + thread);
#endrepeat
#repeat i $W_LOADS
        let w_$i = fetch_w(pair, first_channel, next, $i * THREADS + thread);
#endrepeat
#repeat k $STEPS
        {
#repeat i $HIGH
            let a$i = coopLoadT<coop_mat16x16<f16, A>>(
                &x_tile[(token + $i * SIDE) * PITCH + $k * (SIDE / 4u)],
                PITCH,
            );
#endrepeat
#repeat j $WIDE
            let b$j = coopLoad<coop_mat16x16<f16, B>>(
                &w_tile[(channel + $j * SIDE) * PITCH + $k * (SIDE / 4u)],
                PITCH,
            );
#repeat i $HIGH
            sum_$i$j = coopMultiplyAdd(a$i, b$j, sum_$i$j);
#endrepeat
#endrepeat
        }
#endrepeat
        workgroupBarrier();
#repeat i $X_LOADS
        x_tile[to + $i * (THREADS / QUADS) * PITCH] = rounded(x_$i);
#endrepeat
#repeat i $W_LOADS
        w_tile[to + $i * (THREADS / QUADS) * PITCH] = w_$i;
#endrepeat
        workgroupBarrier();
    }
