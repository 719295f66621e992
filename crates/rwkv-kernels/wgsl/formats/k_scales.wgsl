// Q4_K's and Q5_K's scales of 256 elements in 16 bytes: d and dmin, then 8 scales and 8 minima of 6 bits.
#import formats/half

struct GroupScale {
    scale: f32,
    minimum: f32,
}

// Those of group `group` of 32: of groups 0 to 3 in the low 6 bits of words y and z, of the others in word w and in the
// upper 2 bits of y and z.
fn group_scale(packed: vec4<u32>, group: u32) -> GroupScale {
    let shift = 8u * (group & 3u);
    let first = packed.y >> shift;
    let second = packed.z >> shift;
    let third = packed.w >> shift;
    let early = group < 4u;
    let scale = select((third & 15u) | ((first >> 2u) & 48u), first & 63u, early);
    let minimum = select(((third >> 4u) & 15u) | ((second >> 2u) & 48u), second & 63u, early);
    return GroupScale(half(packed.x) * f32(scale), half(packed.x >> 16u) * f32(minimum));
}
