// Unpacks halves, two a word.
@group(0) @binding(0) var<storage, read> halves: array<u32>;
@group(0) @binding(1) var<storage, read_write> floats: array<vec2<f32>>;

@compute @workgroup_size(4)
fn main(@builtin(local_invocation_index) index: u32) {
    floats[index] = unpack2x16float(halves[index]);
}
