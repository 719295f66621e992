// Units of four rows as integers, and x of several tokens rounded to 16 bits. Codes become bytes once for all tokens.
#import stream/integer

struct RowUnit {
    codes: array<vec2<u32>, EIGHTS>,
    scales: vec4<f32>,
}

// What all tokens meet.
struct Weights {
    a: RowUnit,
    b: RowUnit,
    c: RowUnit,
    d: RowUnit,
}

fn row_unit(raw: Unit, unit: u32) -> RowUnit {
    return RowUnit(unit_bytes(raw), unit_scales(raw, unit));
}

fn token_sums(sums: vec4<f32>, weights: Weights, token: u32, near: u32, p: u32) -> vec4<f32> {
    let x = unit_x(token, near);
    return sums + vec4(
        codes_product(weights.a.codes, weights.a.scales, x),
        codes_product(weights.b.codes, weights.b.scales, x),
        codes_product(weights.c.codes, weights.c.scales, x),
        codes_product(weights.d.codes, weights.d.scales, x),
    );
}

// Adds the products of `raw`, unit `unit` of the row and `near` of what is staged.
fn add_units(raw: Units, unit: u32, near: u32, sums: ptr<function, Sums>) {
    let weights = Weights(
        row_unit(raw.a, unit),
        row_unit(raw.b, unit),
        row_unit(raw.c, unit),
        row_unit(raw.d, unit),
    );
    add_tokens(weights, near, 0u, sums);
}
