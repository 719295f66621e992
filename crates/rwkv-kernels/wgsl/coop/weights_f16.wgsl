// A tile of F16 weights goes as it is: eight bytes a load. (Loads of 16 bytes, as two neighbouring vectors, were 3 % slower
// on an H200, 2026-11.)
@group(1) @binding(0) var<storage, read> weights: array<vec4<f16>>;

const UNIT: u32 = 4u;
// Rows are whole units of eight.
const UNITS_A_UNIT: u32 = 2u;
#define W_LOADS $LOADS_4

alias Raw = vec4<f16>;

fn load_raw(row: u32, unit: u32) -> Raw {
    return weights[row * W_UNITS + unit];
}

fn store_raw(raw: Raw, unit: u32, place: u32) {
    put_w(place, raw);
}
