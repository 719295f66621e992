// Units of four rows, and x of several tokens as it is: four columns after the other, so that few values are expanded at
// a time. Scaling is part of that, once for all tokens.
#import stream/float
#import stream/four_rows

// What all tokens meet.
alias Weights = FourRows;

fn part_of(raw: Unit, unit: u32, p: u32) -> vec4<f32> {
    var values = unit_values(raw);
    var value = values[p];
    if SCALES > 0u {
        let scales = unit_scales(raw, unit);
        let second = (SCALES == 2u) & (p >= PARTS / 2u);
        value *= select(scales.x, scales.y, second);
        if MINIMA {
            value += select(scales.z, scales.w, second);
        }
    }
    return value;
}

fn add_part(raw: Units, unit: u32, near: u32, p: u32, sums: ptr<function, Sums>) {
    let weights = Weights(
        part_of(raw.a, unit, p),
        part_of(raw.b, unit, p),
        part_of(raw.c, unit, p),
        part_of(raw.d, unit, p),
    );
    add_tokens(weights, near, p, sums);
}

fn token_sums(sums: vec4<f32>, weights: Weights, token: u32, near: u32, p: u32) -> vec4<f32> {
    return dots_onto(sums, weights, x_part(token, near, p));
}

// Adds the products of `raw`, unit `unit` of the row and `near` of what is staged.
fn add_units(raw: Units, unit: u32, near: u32, sums: ptr<function, Sums>) {
    add_part(raw, unit, near, 0u, sums);
    if PARTS > 1u {
        add_part(raw, unit, near, 1u, sums);
    }
    if PARTS > 2u {
        add_part(raw, unit, near, 2u, sums);
        add_part(raw, unit, near, 3u, sums);
    }
    if PARTS > 4u {
        add_part(raw, unit, near, 4u, sums);
        add_part(raw, unit, near, 5u, sums);
        add_part(raw, unit, near, 6u, sums);
        add_part(raw, unit, near, 7u, sums);
    }
}
