// y = f(W x) + residual for one token, the columns cut into SLICES of which each workgroup multiplies one. The slices of
// a row are summed by whichever workgroup is the last to have written its part: nobody waits for another.
#import stream/rows
#import activation
#import grid
#import batch

struct Params {
    page: Page,
    // The place of the first row in y and the residual.
    first_row: u32,
    // The row that becomes a shift vector, in elements of x.
    shifted: u32,
    // Which of the two vectors of a slot, and their width.
    which: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> residual: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
// How many slices are done, for each group of rows; then the slices' sums. Both are read by other workgroups than wrote
// them, and atomics reach them all. Between two dispatches the counters are 0.
@group(0) @binding(4) var<storage, read_write> scratch: array<atomic<u32>>;
#ifdef EPILOGUE_SHIFT
@group(0) @binding(5) var<storage, read> spans: array<Span>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
#endif

override HAS_RESIDUAL: bool = false;
// What decides where the first weights lie must not be waited for: rows, the first one's place in the bound weights, and
// where x begins, in vec4s.
override MATRIX_ROWS: u32 = 1u;
override BASE: u32 = 0u;
override X_FIRST: u32 = 0u;
override SLICES: u32 = 1u;
// Counters in front of the sums.
override COUNTERS: u32 = 1u;

var<workgroup> done: u32;
var<private> slice: u32;

fn finish(row: u32, sum: f32) {
    let place = params.first_row + row;
    var value = activate(sum);
    if HAS_RESIDUAL {
        value += residual[place];
    }
    y[place] = value;
#ifdef EPILOGUE_SHIFT
    let slot = spans[0].slot;
    if in_page(params.page, slot) {
        let at = params.shifted + place;
        state[((slot - params.page.first_slot) * 2u + params.which) * params.width + place] = x[at / 4u][at % 4u];
    }
#endif
}

fn emit(row: u32, sum: f32) {
    if SLICES == 1u {
        finish(row, sum);
    } else {
        atomicStore(&scratch[COUNTERS + slice * MATRIX_ROWS + row], bitcast<u32>(sum));
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = lane_of(at);
    let team = team_of(lane);
    let groups = at.workgroups.x * at.workgroups.y / SLICES;
    let group = flat_workgroup(at) % groups;
    slice = flat_workgroup(at) / groups;
    if slice >= SLICES {
        return;
    }
    let work = Work(BASE, MATRIX_ROWS, group, groups, slice * SLICE);
    let first = load_step(work, team, group, 0u);
    let start = X_FIRST + slice * SLICE * (UNIT / 4u);
    for (var i = at.thread; i < SLICE * UNIT / 8u; i += WORKGROUP) {
        stage_eight(0u, i, x[start + 2u * i], x[start + 2u * i + 1u]);
    }
    workgroupBarrier();
    make_rows(work, lane, team, at.thread, first);
    if SLICES == 1u {
        return;
    }
    // All sums of this workgroup are written before it is counted, and those of the others before they were: in SPIR-V and
    // HLSL (sparse_matvec.wgsl has what that rests on); elsewhere the host asks for one slice.
    storageBarrier();
    workgroupBarrier();
    if at.thread == 0u {
        done = atomicAdd(&scratch[group], 1u);
    }
    workgroupBarrier();
    if done != SLICES - 1u {
        return;
    }
    storageBarrier();
    if at.thread == 0u {
        atomicStore(&scratch[group], 0u);
    }
    let block_rows = team.teams * ROWS;
    for (var first_row = group * block_rows; first_row < MATRIX_ROWS; first_row += groups * block_rows) {
        for (var i = at.thread; i < block_rows; i += WORKGROUP) {
            let row = first_row + i;
            if row < MATRIX_ROWS {
                var sum = 0.0;
                for (var s = 0u; s < SLICES; s++) {
                    sum += bitcast<f32>(atomicLoad(&scratch[COUNTERS + s * MATRIX_ROWS + row]));
                }
                finish(row, sum);
            }
        }
    }
}
