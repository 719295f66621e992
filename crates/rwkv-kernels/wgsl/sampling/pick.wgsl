// A token by the running sum over ascending ids: the draw, and the last one of top-k among ties.
#import sampling/row
#import sampling/search

// By ascending id, the first token whose running sum of values passes `share` of the total, or passes `share` itself
// for ties.
fn pick(kind: u32, share: f32, at: Invocation) -> u32 {
    // Stretches are whole blocks, so that no thread meets two of them in one.
    let stretch = (quads + COLUMNS * BLOCK - 1u) / (COLUMNS * BLOCK) * BLOCK;
    for (var i = 0u; i < COLUMNS; i++) {
        columns[i * SIZE + at.thread] = 0.0;
    }
    for (var first = at.thread; first < quads; first += BLOCK) {
        let raw = load(first);
        var sum = 0.0;
        for (var i = 0u; i < AHEAD; i++) {
            let quad = first + i * SIZE;
            let gaps = gaps_of(quad, raw[i]);
            for (var lane = 0u; lane < 4u; lane++) {
                sum += value_of(kind, gaps[lane], quad * 4u + lane);
            }
        }
        columns[first / stretch * SIZE + at.thread] += sum;
    }
    workgroupBarrier();
    let part = column_part(at);
    let scan = workgroup_scan(part, at);
    var goal = select(share * scan.y, share, kind == TIE);
    let column = search(part, scan.x, goal, true, at).rank / (SIZE / COLUMNS);
    goal -= before_column(column, scan.x, part, at);

    // Within the stretch each thread has consecutive ids.
    let rank = rank_of(at);
    let each = stretch / SIZE;
    let start = column * stretch + rank * each;
    let end = min(start + each, quads);
    var sum = 0.0;
    for (var quad = start; quad < end; quad++) {
        let gaps = gaps_of(quad, logits[row + quad]);
        for (var lane = 0u; lane < 4u; lane++) {
            sum += value_of(kind, gaps[lane], quad * 4u + lane);
        }
    }
    let found = search(sum, workgroup_scan(sum, at).x, goal, true, at);
    if rank == found.rank {
        goal -= found.before;
        var running = 0.0;
        var chosen = 0u;
        for (var quad = start; quad < end; quad++) {
            let gaps = gaps_of(quad, logits[row + quad]);
            for (var lane = 0u; lane < 4u; lane++) {
                let value = value_of(kind, gaps[lane], quad * 4u + lane);
                if value > 0.0 && !(running > goal) {
                    chosen = quad * 4u + lane;
                }
                running += value;
            }
        }
        shared_place = chosen;
    }
    return workgroupUniformLoad(&shared_place);
}
