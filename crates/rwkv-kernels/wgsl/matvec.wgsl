// y = W x for up to TOKENS tokens: the lanes of a row read its weights once, 16 bytes each at a time.
#import formats/$FORMAT
#import lanes/$LANES
#import linear
#import grid

const TOKENS: u32 = $TOKENS;

// Whether the last unit of a row may reach past the last column.
override RAGGED: bool = false;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#ifdef LANES_SUBGROUP
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) group: u32,
    @builtin(num_subgroups) groups: u32,
#endif
) {
#ifdef LANES_PLAIN
    let lane = thread % LANES;
    let lanes = LANES;
    let group = thread / LANES;
    let groups = WORKGROUP / LANES;
#endif
    let first = flat_workgroup(workgroup, workgroups) * groups;
    if first >= params.rows {
        return;
    }
    // Rows past the end repeat the last one, so that the whole workgroup meets at barriers.
    let row = min(first + group, params.rows - 1u);
    var sums: array<f32, TOKENS>;
    for (var unit = lane; unit < params.units; unit += lanes) {
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
        let sum = lanes_add(sums[token], thread);
        if lane == 0u && token < params.tokens && first + group < params.rows {
            finish(sum, row, token);
        }
    }
}
