// x rounded to 16 bits, in blocks of 32 elements with a scale each, for integer dot products with codes of 8 bits and
// less: a code meets the upper and the lower byte of x in two instructions for four elements, and needs no expanding.
// Rounding is within 1/65278 of the largest element of the block; everything after it is exact but for the scales.

// Units of x that are staged, all of a row's or some of them.
override SLICE: u32 = 1u;
// vec4s of workgroup memory and those of a token, and blocks of x and those of a token.
override X_VECTORS: u32 = 1u;
override X_PITCH: u32 = 1u;
override X_BLOCKS: u32 = 1u;
override BLOCK_PITCH: u32 = 1u;

const BLOCK: u32 = 32u;
// Elements 8 i .. of x are a vec4: two words of upper bytes, two of lower ones.
const EIGHTS: u32 = UNIT / 8u;
// 127 · 256 + 127: both bytes have a sign.
const LARGEST_X: f32 = 32639.0;

// What the integers are multiplied by, and their sums: of the block, or where scales differ of its two halves.
struct BlockX {
    scale: f32,
    near: i32,
    far: i32,
}

var<workgroup> staged: array<vec4<u32>, X_VECTORS>;
var<workgroup> staged_blocks: array<BlockX, X_BLOCKS>;

// Elements `8 * index ..` of a token's. The threads of four neighbouring indices are neighbours in one subgroup.
fn stage_eight(token: u32, index: u32, low: vec4<f32>, high: vec4<f32>) {
    let most = max(abs(low), abs(high));
    var largest = max(max(most.x, most.y), max(most.z, most.w));
    largest = max(largest, subgroupShuffleXor(largest, 1u));
    largest = max(largest, subgroupShuffleXor(largest, 2u));
    // Of blocks of next to nothing nothing is left.
    let inverse = select(0.0, LARGEST_X / largest, largest > 1e-30);
    let a = vec4<i32>(round(low * inverse));
    let b = vec4<i32>(round(high * inverse));
    let upper_a = (a + vec4(128)) >> vec4(8u);
    let upper_b = (b + vec4(128)) >> vec4(8u);
    let lower_a = a - (upper_a << vec4(8u));
    let lower_b = b - (upper_b << vec4(8u));
    var words: vec4<u32>;
    if NEIGHBOURS {
        words = vec4(pack4xI8(upper_a), pack4xI8(upper_b), pack4xI8(lower_a), pack4xI8(lower_b));
    } else {
        words = vec4(
            pack4xI8(vec4(upper_a.xz, upper_b.xz)),
            pack4xI8(vec4(upper_a.yw, upper_b.yw)),
            pack4xI8(vec4(lower_a.xz, lower_b.xz)),
            pack4xI8(vec4(lower_a.yw, lower_b.yw)),
        );
    }
    staged[token * X_PITCH + index % EIGHTS * SLICE + index / EIGHTS] = words;
    let both = a + b;
    var sum = both.x + both.y + both.z + both.w;
    sum += subgroupShuffleXor(sum, 1u);
    let other = subgroupShuffleXor(sum, 2u);
    if index % 4u == 0u {
        // A scale of NaN or infinity makes the products NaN, as x would.
        let scale = largest / LARGEST_X;
        let block = token * BLOCK_PITCH + index / 4u;
        if SCALES == 2u {
            staged_blocks[block] = BlockX(scale, sum, other);
        } else {
            staged_blocks[block] = BlockX(scale, sum + other, 0);
        }
    }
}

// The eights of a unit: two, or four.
struct UnitX {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
    block: BlockX,
}

fn unit_x(token: u32, unit: u32) -> UnitX {
    let first = token * X_PITCH + unit;
    var x: UnitX;
    x.a = staged[first];
    x.b = staged[first + SLICE];
    if EIGHTS > 2u {
        x.c = staged[first + 2u * SLICE];
        x.d = staged[first + 3u * SLICE];
    }
    x.block = staged_blocks[token * BLOCK_PITCH + unit * UNIT / BLOCK];
    return x;
}

// Codes times upper and lower bytes.
fn eight_products(codes: vec2<u32>, words: vec4<u32>) -> vec2<i32> {
    return vec2(
        dot4I8Packed(codes.x, words.x) + dot4I8Packed(codes.y, words.y),
        dot4I8Packed(codes.x, words.z) + dot4I8Packed(codes.y, words.w),
    );
}

fn unit_product(raw: Unit, x: UnitX, unit: u32) -> f32 {
    return codes_product(unit_bytes(raw), unit_scales(raw, unit), x);
}

fn codes_product(codes: array<vec2<u32>, EIGHTS>, scales: vec4<f32>, x: UnitX) -> f32 {
    var near = eight_products(codes[0], x.a) + eight_products(codes[1], x.b);
    var far = vec2(0);
    if EIGHTS > 2u {
        far = eight_products(codes[EIGHTS - 2u], x.c) + eight_products(codes[EIGHTS - 1u], x.d);
    }
    if SCALES < 2u {
        near += far;
    }
    var sum = scales.x * f32(near.x * 256 + near.y - ZERO * x.block.near);
    if SCALES == 2u {
        sum += scales.y * f32(far.x * 256 + far.y - ZERO * x.block.far);
    }
    if MINIMA {
        sum += scales.z * f32(x.block.near);
    }
    return sum * x.block.scale;
}
