// Compressed sparse rows: where a row's entries are, their columns in ascending order, and their values. Rows begin at
// whole units of eight entries: 16 bytes of f16 values, and columns of 16 or 32 bits each.
@group(1) @binding(0) var<storage, read> row_entries: array<vec2<u32>>;
@group(1) @binding(1) var<storage, read> entry_columns: array<vec4<u32>>;
@group(1) @binding(2) var<storage, read> entry_values: array<vec4<u32>>;

// The first unit of a row, and how many entries it has.
struct Entries {
    unit: u32,
    count: u32,
}

fn entries_of(row: u32) -> Entries {
    let found = row_entries[row];
    return Entries(found.x, found.y);
}

fn unit_columns(unit: u32) -> array<u32, 8> {
#ifdef INDEX_U16
    let packed = entry_columns[unit];
    let low = packed & vec4(0xffffu);
    let high = packed >> vec4(16u);
    return array<u32, 8>(low.x, high.x, low.y, high.y, low.z, high.z, low.w, high.w);
#else
    let first = entry_columns[unit * 2u];
    let second = entry_columns[unit * 2u + 1u];
    return array<u32, 8>(first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w);
#endif
}

fn unit_values(unit: u32) -> array<f32, 8> {
    let packed = entry_values[unit];
    let a = unpack2x16float(packed.x);
    let b = unpack2x16float(packed.y);
    let c = unpack2x16float(packed.z);
    let d = unpack2x16float(packed.w);
    return array<f32, 8>(a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y);
}

fn entry_column(entry: u32) -> u32 {
#ifdef INDEX_U16
    return (entry_columns[entry / 8u][entry % 8u / 2u] >> (entry % 2u * 16u)) & 0xffffu;
#else
    return entry_columns[entry / 4u][entry % 4u];
#endif
}

fn entry_value(entry: u32) -> f32 {
    return unpack2x16float(entry_values[entry / 8u][entry % 8u / 2u] >> (entry % 2u * 16u)).x;
}
