// x as it is: vec4 v of it at `v % PARTS * SLICE + v / PARTS`, its bits in workgroup memory.

// Units of x, all of a row's or a slice of them.
override SLICE: u32 = 1u;
// vec4s of workgroup memory.
override X_VECTORS: u32 = 1u;

var<workgroup> staged: array<vec4<u32>, X_VECTORS>;

fn stage(vector: u32, value: vec4<f32>) {
    staged[vector % PARTS * SLICE + vector / PARTS] = bitcast<vec4<u32>>(value);
}

// Elements `8 * index ..` of the slice.
fn stage_eight(index: u32, low: vec4<f32>, high: vec4<f32>) {
    stage(2u * index, low);
    stage(2u * index + 1u, high);
}

struct UnitX {
    values: array<vec4<f32>, PARTS>,
}

fn unit_x(unit: u32) -> UnitX {
    var x: UnitX;
    for (var p = 0u; p < PARTS; p++) {
        x.values[p] = bitcast<vec4<f32>>(staged[p * SLICE + unit]);
    }
    return x;
}

// One sum after the other, so that each is one fused multiply-add.
fn dot_onto(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return a.w * b.w + (a.z * b.z + (a.y * b.y + (a.x * b.x + sum)));
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
