// y = W x for up to TOKENS tokens and a W of compressed sparse rows: the lanes of a row read its entries once, eight
// each at a time, and gather x.
#import csr
#import lanes/$LANES
#import linear
#import grid

const TOKENS: u32 = $TOKENS;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let first = flat_workgroup(at) * lane.groups;
    if first >= params.rows {
        return;
    }
    // Rows past the end repeat the last one, so that the whole workgroup meets at barriers.
    let row = min(first + lane.group, params.rows - 1u);
    let entries = entries_of(row);
    var sums: array<f32, TOKENS>;
    for (var unit = lane.index; unit * 8u < entries.count; unit += lane.count) {
        let columns = unit_columns(entries.unit + unit);
        let weights = unit_values(entries.unit + unit);
        let left = entries.count - unit * 8u;
        for (var i = 0u; i < 8u; i++) {
            // Entries past the last are zeros, whose x may be infinite.
            if i < left {
                for (var token = 0u; token < TOKENS; token++) {
                    let source = min(token, params.tokens - 1u) * params.x_stride;
                    sums[token] += weights[i] * x[source + columns[i] / 4u][columns[i] % 4u];
                }
            }
        }
    }
    for (var token = 0u; token < TOKENS; token++) {
        let sum = lanes_add(sums[token], at.thread);
        if lane.index == 0u && token < params.tokens && first + lane.group < params.rows {
            finish(sum, row, token);
        }
    }
}
