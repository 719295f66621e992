// y = W x for up to TOKENS tokens: each weight is read once for all of them.
#import rows
#import linear
#import grid

// Whether the last unit of a row may reach past the last column.
override RAGGED: bool = false;

fn global_x(token: u32, part: u32) -> vec4<f32> {
    // Tokens past the last repeat it.
    let source = min(token, params.tokens - 1u);
    if RAGGED {
        return load_x(source, part);
    }
    return x[source * params.x_stride + part];
}

// Units `first .. end` of every token's x to workgroup memory. Called by the whole workgroup.
fn stage_x(first: u32, end: u32, thread: u32) {
    workgroupBarrier();
    for (var part = thread; part < (end - first) * PARTS; part += WORKGROUP) {
        for (var token = 0u; token < TOKENS; token++) {
            stage(token, part, global_x(token, first * PARTS + part));
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
    // Usually one block a workgroup; fewer workgroups stage x fewer times.
    for (var block = own; block * block_rows < params.rows; block += at.workgroups.x * at.workgroups.y) {
        let rows = TeamRows(block * block_rows + team.number, team.teams, params.rows - 1u);
        var sums = Sums();
        for (var first = 0u; first < params.units; first += params.chunk) {
            let end = min(first + params.chunk, params.units);
            if STAGED && (block == own || params.chunk < params.units) {
                stage_x(first, end, at.thread);
            }
            let based = TeamRows(params.base + rows.first, rows.step, params.base + rows.last);
            accumulate(team, based, first, end, params.units, &sums);
        }
        share_sums(lane, at.thread, &sums);
        for (var i = at.thread; i < TOKENS * block_rows; i += WORKGROUP) {
            let token = i / block_rows;
            let place = i % block_rows;
            let row = block * block_rows + place;
            if token < params.tokens && row < params.rows {
                finish(team_sum(lane, team.teams, place % team.teams, place / team.teams, token), row, token);
            }
        }
        workgroupBarrier();
    }
}
