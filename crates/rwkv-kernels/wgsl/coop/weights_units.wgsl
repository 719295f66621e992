// A tile of packed weights: units stay as they lie until they are stored, then they become f16: rounded once, from what
// f32 has of them.
#import formats/$FORMAT
#import scaled

const UNITS_A_UNIT: u32 = 1u;
#ifdef FORMAT_INT8
#define W_LOADS $LOADS_16
#else
#define W_LOADS $LOADS_32
#endif

alias Raw = Unit;

fn load_raw(row: u32, unit: u32) -> Raw {
    return load_unit(row, unit, W_UNITS);
}

fn store_raw(raw: Raw, unit: u32, place: u32) {
    let values = unit_values(raw);
    let scales = unit_scales(raw, unit);
#repeat part 8
    if $part < PARTS {
        put_w(place + $part, vec4<f16>(scaled(values[min($part, PARTS - 1u)], scales, $part)));
    }
#endrepeat
}
