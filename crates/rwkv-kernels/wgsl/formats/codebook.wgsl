// Codes of 4 bits into TABLE, with one f16 scale for BLOCK elements.
#import formats/nibbles
#import formats/scales

override BLOCK: u32 = 32u;

@group(1) @binding(1) var<storage, read> scales: array<u32>;

// Elements `unit * UNIT ..` of `row`, where a row has `units` units.
fn weight_unit(row: u32, unit: u32, units: u32) -> array<vec4<f32>, PARTS> {
    var table = TABLE;
    let packed = weights[row * units + unit];
    let block = unit / (BLOCK / UNIT);
    let word = scales[scale_word(row, block, units / (BLOCK / UNIT))];
    let scale = block_scale(word, block);
    var values: array<vec4<f32>, PARTS>;
    for (var part = 0u; part < PARTS; part++) {
        let codes = unpack4xU8(nibbles(packed, part));
        values[part] = scale * vec4(table[codes.x], table[codes.y], table[codes.z], table[codes.w]);
    }
    return values;
}
