// y = W x for up to TOKENS tokens: the lanes of a row read its weights once, 16 bytes each at a time.
#import formats/$FORMAT
#import lanes/$LANES
#import linear
#import grid

const TOKENS: u32 = $TOKENS;

// Whether the last unit of a row may reach past the last column.
override RAGGED: bool = false;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let first = flat_workgroup(at) * lane.groups;
    if first >= params.rows {
        return;
    }
    // Rows past the end repeat the last one, so that the whole workgroup meets at barriers.
    let row = min(first + lane.group, params.rows - 1u);
    var sums: array<f32, TOKENS>;
    for (var unit = lane.index; unit < params.units; unit += lane.count) {
        let weight = weight_unit(row, unit, params.units);
        for (var token = 0u; token < TOKENS; token++) {
            let source = min(token, params.tokens - 1u);
            for (var part = 0u; part < PARTS; part++) {
                var value: vec4<f32>;
                if RAGGED {
                    value = load_x(source, unit * PARTS + part);
                } else {
                    value = x[source * params.x_stride + unit * PARTS + part];
                }
                sums[token] += dot(weight[part], value);
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
