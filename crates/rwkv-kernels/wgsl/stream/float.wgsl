// x as it is: vec4 v of it at `v % PARTS * SLICE + v / PARTS`, its bits in workgroup memory.

#import dot_onto

// Units of x that are staged, all of a row's or some of them.
override SLICE: u32 = 1u;
// vec4s of workgroup memory, and those of a token.
override X_VECTORS: u32 = 1u;
override X_PITCH: u32 = 1u;

var<workgroup> staged: array<vec4<u32>, X_VECTORS>;

fn stage(token: u32, vector: u32, value: vec4<f32>) {
    staged[token * X_PITCH + vector % PARTS * SLICE + vector / PARTS] = bitcast<vec4<u32>>(value);
}

// Elements `8 * index ..` of a token's.
fn stage_eight(token: u32, index: u32, low: vec4<f32>, high: vec4<f32>) {
    stage(token, 2u * index, low);
    stage(token, 2u * index + 1u, high);
}

// Part `p` of a unit.
fn x_part(token: u32, unit: u32, p: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(staged[token * X_PITCH + p * SLICE + unit]);
}

struct UnitX {
    values: array<vec4<f32>, PARTS>,
}

fn unit_x(token: u32, unit: u32) -> UnitX {
    var x: UnitX;
    for (var p = 0u; p < PARTS; p++) {
        x.values[p] = x_part(token, unit, p);
    }
    return x;
}

fn unit_product(raw: Unit, x: UnitX, unit: u32) -> f32 {
    var inputs = x;
    var values = unit_values(raw);
    // The two halves of the unit are scaled once, not element by element.
    var near = 0.0;
    var far = 0.0;
    var near_x = 0.0;
    var far_x = 0.0;
    for (var p = 0u; p < PARTS; p++) {
        let value = inputs.values[p];
        let second = SCALES == 2u && p >= PARTS / 2u;
        if second {
            far = dot_onto(far, values[p], value);
        } else {
            near = dot_onto(near, values[p], value);
        }
        if MINIMA {
            let sum = (value.x + value.y) + (value.z + value.w);
            if second {
                far_x += sum;
            } else {
                near_x += sum;
            }
        }
    }
    if SCALES == 0u {
        return near;
    }
    let scales = unit_scales(raw, unit);
    var sum = scales.x * near;
    if SCALES == 2u {
        sum += scales.y * far;
    }
    if MINIMA {
        sum += scales.z * near_x;
        if SCALES == 2u {
            sum += scales.w * far_x;
        }
    }
    return sum;
}
