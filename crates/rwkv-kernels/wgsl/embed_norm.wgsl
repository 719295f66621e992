// y[token] = the layer norm of the row of the table that the token names. A workgroup a token. What its threads hold is
// read once, all at once, the norm's weight and bias before the token is known; of longer rows the later passes expand the
// packed row again, which is small and in the nearest cache by then. A table that passes the binding limit comes in parts;
// each part fills the rows it has.
#import formats/$FORMAT
#import reduce/$LANES
#import batch
#import grid

struct Params {
    // Rows of this part of the table, and the first one's id.
    rows: u32,
    first_row: u32,
    cols: u32,
    units: u32,
    tokens: u32,
    // Between rows of y, in fours.
    y_stride: u32,
    epsilon: f32,
    // The row of the buffers that the first one is.
    base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<Token>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

// Units that a thread holds: at most four. 0 where a row has more.
override OWN: u32 = 0u;

// Elements of a unit, four at a time.
struct Values {
    part: array<vec4<f32>, PARTS>,
}

// Which four of a row's columns a part of a unit has.
fn four_of(unit: u32, part: u32) -> u32 {
    return unit * PARTS + part;
}

// Those of a four that are columns of the row.
fn in_row(four: u32) -> vec4<bool> {
    return vec4(four * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(params.cols);
}

fn fours() -> u32 {
    return (params.cols + 3u) / 4u;
}

fn total(value: vec4<f32>) -> f32 {
    return (value.x + value.y) + (value.z + value.w);
}

fn sum_of(unit: u32, values: Values) -> vec4<f32> {
    var sum = vec4(0.0);
    for (var part = 0u; part < PARTS; part++) {
        sum += select(vec4(0.0), values.part[part], in_row(four_of(unit, part)));
    }
    return sum;
}

fn square_of(unit: u32, values: Values, mean: f32) -> vec4<f32> {
    var square = vec4(0.0);
    for (var part = 0u; part < PARTS; part++) {
        let d = select(vec4(0.0), values.part[part] - mean, in_row(four_of(unit, part)));
        square += d * d;
    }
    return square;
}

// Past the end the last ones again: no branch stands between two loads.
fn weights_of(unit: u32) -> Values {
    var values: Values;
    for (var part = 0u; part < PARTS; part++) {
        values.part[part] = weight[min(four_of(unit, part), fours() - 1u)];
    }
    return values;
}

fn biases_of(unit: u32) -> Values {
    var values: Values;
    for (var part = 0u; part < PARTS; part++) {
        values.part[part] = bias[min(four_of(unit, part), fours() - 1u)];
    }
    return values;
}

// Fours as they are, with what lies past the row: rows of y have room for it.
fn write(row: u32, unit: u32, normed: Values) {
    for (var part = 0u; part < PARTS; part++) {
        let four = four_of(unit, part);
        if four < fours() {
            y[row + four] = normed.part[part];
        }
    }
}

fn norm_of(values: Values, mean: f32, scale: f32, weights: Values, biases: Values) -> Values {
    var normed: Values;
    for (var part = 0u; part < PARTS; part++) {
        normed.part[part] = (values.part[part] - mean) * scale * weights.part[part] + biases.part[part];
    }
    return normed;
}

fn scale_for(square: vec4<f32>, at: Invocation) -> f32 {
    return 1.0 / sqrt(workgroup_add(total(square), at) / f32(params.cols) + params.epsilon);
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let token = flat_workgroup(at);
    if token >= params.tokens {
        return;
    }
#repeat i 4
    let unit_$i = at.thread + SIZE * u32($i);
    var weights_$i: Values;
    var biases_$i: Values;
    if OWN > u32($i) {
        weights_$i = weights_of(unit_$i);
        biases_$i = biases_of(unit_$i);
    }
#endrepeat
    let id = tokens[token].id;
    if id < params.first_row || id - params.first_row >= params.rows {
        return;
    }
    let row = params.base + id - params.first_row;
    let to = token * params.y_stride;
    var sum = vec4(0.0);
    if OWN > 0u {
#repeat i 4
        var values_$i: Values;
        if OWN > u32($i) {
            values_$i = Values(weight_unit(row, min(unit_$i, params.units - 1u), params.units));
        }
#endrepeat
#repeat i 4
        if OWN > u32($i) {
            sum += sum_of(unit_$i, values_$i);
        }
#endrepeat
        let mean = workgroup_add(total(sum), at) / f32(params.cols);
        var square = vec4(0.0);
#repeat i 4
        if OWN > u32($i) {
            square += square_of(unit_$i, values_$i, mean);
        }
#endrepeat
        let scale = scale_for(square, at);
#repeat i 4
        if OWN > u32($i) {
            write(to, unit_$i, norm_of(values_$i, mean, scale, weights_$i, biases_$i));
        }
#endrepeat
        return;
    }
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        sum += sum_of(unit, Values(weight_unit(row, unit, params.units)));
    }
    let mean = workgroup_add(total(sum), at) / f32(params.cols);
    var square = vec4(0.0);
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        square += square_of(unit, Values(weight_unit(row, unit, params.units)), mean);
    }
    let scale = scale_for(square, at);
    for (var unit = at.thread; unit < params.units; unit += SIZE) {
        let values = Values(weight_unit(row, unit, params.units));
        write(to, unit, norm_of(values, mean, scale, weights_of(unit), biases_of(unit)));
    }
}
