// y = keep W + B A + T, row by row: a weight with what adapters change of it, as F16 or F32. W is read in its own
// format; A, B and T are f32. B and T share a buffer, so that no format of W needs more than 8. A matrix that passes the binding limit comes in parts; each dispatch makes the rows that
// one part of W and one of y share.
#import formats/$FORMAT
#import invocation
#import grid

struct Params {
    // Rows to make, and the first one's number in this part of W, in this part of y, and in `own`.
    rows: u32,
    w_row: u32,
    y_row: u32,
    own_row: u32,
    cols: u32,
    units: u32,
    // Rows of A, columns of B.
    rank: u32,
    // Between rows: of A and `own` in vec4s, of y in fours of elements.
    a_stride: u32,
    own_stride: u32,
    y_stride: u32,
    // Vec4s of a row of `own` before those of T.
    t_first: u32,
    // Where `largest` keeps what this matrix has.
    index: u32,
    keep: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
// What each row that is made has of its own: its row of B, padded to whole vec4s, then its row of T if there is one.
@group(0) @binding(2) var<storage, read> own: array<vec4<f32>>;
// The bits of the largest finite magnitude that was written: those of positive floats are in their order.
@group(0) @binding(3) var<storage, read_write> largest: array<atomic<u32>>;
#ifdef TARGET_F16
@group(0) @binding(4) var<storage, read_write> y: array<vec2<u32>>;
#else
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
#endif

override HAS_WHOLE: bool = false;

const SIZE: u32 = 64u;
// The bits of infinity.
const INFINITE: u32 = 0x7f800000u;

// The bits of |x|, or 0 where it is not finite.
fn magnitude(x: f32) -> u32 {
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    return select(0u, bits, bits < INFINITE);
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let i = flat_workgroup(at) * SIZE + at.thread;
    let row = i / params.units;
    let unit = i % params.units;
    if row >= params.rows {
        return;
    }
    var sums = weight_unit(params.w_row + row, unit, params.units);
    let first = unit * PARTS;
    // Columns are whole fours but for the last.
    let count = min(PARTS, (params.cols + 3u) / 4u - min(first, (params.cols + 3u) / 4u));
    for (var part = 0u; part < PARTS; part++) {
        // What an adapter replaces altogether may be anything, infinity too.
        sums[part] = select(params.keep * sums[part], vec4(0.0), params.keep == 0.0);
    }
    let own_first = (params.own_row + row) * params.own_stride;
    for (var k = 0u; k < params.rank; k++) {
        let factor = own[own_first + k / 4u][k % 4u];
        for (var part = 0u; part < count; part++) {
            sums[part] += factor * a[k * params.a_stride + first + part];
        }
    }
    var most = 0u;
    for (var part = 0u; part < count; part++) {
        var value = sums[part];
        if HAS_WHOLE {
            value += own[own_first + params.t_first + first + part];
        }
        // The padding of a row is zero, as in every weight.
        let columns = vec4(4u * (first + part)) + vec4(0u, 1u, 2u, 3u);
        value = select(vec4(0.0), value, columns < vec4(params.cols));
        most = max(most, max(max(magnitude(value.x), magnitude(value.y)), max(magnitude(value.z), magnitude(value.w))));
        let place = (params.y_row + row) * params.y_stride + first + part;
#ifdef TARGET_F16
        y[place] = vec2(pack2x16float(value.xy), pack2x16float(value.zw));
#else
        y[place] = value;
#endif
    }
    atomicMax(&largest[params.index], most);
}
