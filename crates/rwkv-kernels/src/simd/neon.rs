//! AArch64's NEON: 4 f32 in a register.

use super::vectors::{BLOCK, Vectors, Work};
use std::arch::{aarch64::*, is_aarch64_feature_detected};

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    /// The proof, where it has.
    pub(super) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Instructions of this level, and loads from and stores to references that are as long as the register.
macro_rules! neon {
    ($($body:tt)*) => {{
        // SAFETY: a token of the level proves that the processor has these instructions, and what pointers point to is
        // a reference to at least as many bytes as are moved (unaligned).
        #[allow(unused_unsafe, reason = "NEON is in the base line of most targets, and its functions are safe there")]
        unsafe { $($body)* }
    }};
}

impl Neon {
    /// 8 codes as f32.
    #[inline(always)]
    fn widen(self, q: uint8x8_t) -> [float32x4_t; 2] {
        neon! {
            let words = vmovl_u8(q);
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(words))),
            ]
        }
    }

    /// 8 signed codes as f32.
    #[inline(always)]
    fn widen_signed(self, q: int8x8_t) -> [float32x4_t; 2] {
        neon! {
            let words = vmovl_s8(q);
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(words))),
            ]
        }
    }

    /// Four quarters of a block of codes.
    #[inline(always)]
    fn quarters(self, q: uint8x16x2_t) -> [uint8x8_t; 4] {
        neon! {[
            vget_low_u8(q.0),
            vget_high_u8(q.0),
            vget_low_u8(q.1),
            vget_high_u8(q.1),
        ]}
    }
}

impl Vectors for Neon {
    type Lanes = float32x4_t;
    type Values = [float32x4_t; 8];
    type Bytes = uint8x16x2_t;

    const REGISTERS: usize = 8;
    const TOKENS: usize = 6;

    fn run<W: Work<Self>>(self, work: W) {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        fn enabled<W: Work<Neon>>(v: Neon, work: W) {
            work.run(v);
        }
        neon!(enabled(self, work));
    }

    #[inline(always)]
    fn prefetch(self, _: &[u8]) {}

    #[inline(always)]
    fn zero(self) -> float32x4_t {
        neon!(vdupq_n_f32(0.0))
    }

    #[inline(always)]
    fn lanes(self, block: &[f32; BLOCK], register: usize) -> float32x4_t {
        let lanes = &block.as_chunks::<4>().0[register];
        neon!(vld1q_f32(lanes.as_ptr()))
    }

    #[inline(always)]
    fn store_lanes(self, lanes: float32x4_t, block: &mut [f32; BLOCK], register: usize) {
        let at = &mut block.as_chunks_mut::<4>().0[register];
        neon!(vst1q_f32(at.as_mut_ptr(), lanes));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        neon!(vdupq_n_f32(x))
    }

    #[inline(always)]
    fn multiply(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        neon!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn multiply_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        neon!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        neon! {
            let sums = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
            let mut out = [0.0; 4];
            vst1q_f32(out.as_mut_ptr(), sums);
            out
        }
    }

    #[inline(always)]
    fn add_products(
        self,
        w: [float32x4_t; 8],
        x: &[f32; BLOCK],
        mut sums: float32x4_t,
    ) -> float32x4_t {
        for (i, w) in w.into_iter().enumerate() {
            sums = self.multiply_add(w, self.lanes(x, i), sums);
        }
        sums
    }

    #[inline(always)]
    fn store(self, values: [float32x4_t; 8], block: &mut [f32; BLOCK]) {
        for (i, lanes) in values.into_iter().enumerate() {
            self.store_lanes(lanes, block, i);
        }
    }

    /// Without the instruction, whose type is not stable: a scale of a block costs little.
    #[inline(always)]
    fn half(self, bytes: [u8; 2]) -> f32 {
        half::f16::from_le_bytes(bytes).to_f32()
    }

    #[inline(always)]
    fn half4(self, bytes: [[u8; 2]; 4]) -> [f32; 4] {
        bytes.map(|bytes| self.half(bytes))
    }

    #[inline(always)]
    fn f32(self, bytes: &[u8; 128]) -> [float32x4_t; 8] {
        let mut values = [self.zero(); 8];
        for (value, part) in values.iter_mut().zip(bytes.as_chunks::<16>().0) {
            *value = neon!(vreinterpretq_f32_u8(vld1q_u8(part.as_ptr())));
        }
        values
    }

    /// By integer steps: exponents are moved by a product with 2^112, which makes subnormals numbers too.
    #[inline(always)]
    fn f16(self, bytes: &[u8; 64]) -> [float32x4_t; 8] {
        const MOVED: u32 = (127 + 112) << 23;
        let mut values = [self.zero(); 8];
        for (value, part) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = neon! {
                let wide = vmovl_u16(vreinterpret_u16_u8(vld1_u8(part.as_ptr())));
                let sign = vshlq_n_u32::<16>(vandq_u32(wide, vdupq_n_u32(0x8000)));
                let magnitude = vshlq_n_u32::<13>(vandq_u32(wide, vdupq_n_u32(0x7fff)));
                let moved = vmulq_f32(
                    vreinterpretq_f32_u32(magnitude),
                    vdupq_n_f32(f32::from_bits(MOVED)),
                );
                // Infinities and what is not a number keep their exponent of ones.
                let special = vcgtq_u32(magnitude, vdupq_n_u32(0x0f7f_ffff));
                let ones = vandq_u32(special, vdupq_n_u32(0x7f80_0000));
                vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(moved), ones), sign))
            };
        }
        values
    }

    #[inline(always)]
    fn bf16(self, bytes: &[u8; 64]) -> [float32x4_t; 8] {
        let mut values = [self.zero(); 8];
        for (value, part) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = neon! {
                let wide = vmovl_u16(vreinterpret_u16_u8(vld1_u8(part.as_ptr())));
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide))
            };
        }
        values
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> uint8x16x2_t {
        let [first, last] = [&bytes.as_chunks::<16>().0[0], &bytes.as_chunks::<16>().0[1]];
        neon!(uint8x16x2_t(
            vld1q_u8(first.as_ptr()),
            vld1q_u8(last.as_ptr())
        ))
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 16]) -> uint8x16x2_t {
        neon! {
            let bytes = vld1q_u8(bytes.as_ptr());
            uint8x16x2_t(vandq_u8(bytes, vdupq_n_u8(0xf)), vshrq_n_u8::<4>(bytes))
        }
    }

    #[inline(always)]
    fn pairs(self, bytes: &[u8; 16]) -> uint8x16x2_t {
        let uint8x16x2_t(low, high) = self.halves(bytes);
        neon!(uint8x16x2_t(vzip1q_u8(low, high), vzip2q_u8(low, high)))
    }

    #[inline(always)]
    fn field(self, bytes: uint8x16x2_t, shift: u32, mask: u8) -> uint8x16x2_t {
        // At most 7, as documented.
        let down = -(shift.cast_signed() as i8);
        neon! {
            let (down, mask) = (vdupq_n_s8(down), vdupq_n_u8(mask));
            uint8x16x2_t(
                vandq_u8(vshlq_u8(bytes.0, down), mask),
                vandq_u8(vshlq_u8(bytes.1, down), mask),
            )
        }
    }

    #[inline(always)]
    fn up<const BY: i32>(self, bytes: uint8x16x2_t) -> uint8x16x2_t {
        neon!(uint8x16x2_t(
            vshlq_n_u8::<BY>(bytes.0),
            vshlq_n_u8::<BY>(bytes.1)
        ))
    }

    #[inline(always)]
    fn or(self, a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        neon!(uint8x16x2_t(vorrq_u8(a.0, b.0), vorrq_u8(a.1, b.1)))
    }

    #[inline(always)]
    fn fifth_bits(self, bits: [u8; 4]) -> uint8x16x2_t {
        const OWN: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        neon! {
            let own = vld1q_u8(OWN.as_ptr());
            let first = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
            let last = vcombine_u8(vdup_n_u8(bits[2]), vdup_n_u8(bits[3]));
            let fifth = vdupq_n_u8(0x10);
            uint8x16x2_t(
                vandq_u8(vtstq_u8(first, own), fifth),
                vandq_u8(vtstq_u8(last, own), fifth),
            )
        }
    }

    #[inline(always)]
    fn minus(self, a: uint8x16x2_t, b: u8) -> uint8x16x2_t {
        neon! {
            let b = vdupq_n_u8(b);
            uint8x16x2_t(vsubq_u8(a.0, b), vsubq_u8(a.1, b))
        }
    }

    #[inline(always)]
    fn signed(self, q: uint8x16x2_t, scale: [f32; 2]) -> [float32x4_t; 8] {
        let mut values = [self.zero(); 8];
        let pairs = values.as_chunks_mut::<2>().0.iter_mut();
        for (i, (pair, q)) in pairs.zip(self.quarters(q)).enumerate() {
            let scale = self.splat(scale[i / 2]);
            let [a, b] = self.widen_signed(neon!(vreinterpret_s8_u8(q)));
            *pair = [self.multiply(a, scale), self.multiply(b, scale)];
        }
        values
    }

    #[inline(always)]
    fn unsigned(self, q: uint8x16x2_t, scale: [f32; 2], offset: [f32; 2]) -> [float32x4_t; 8] {
        let mut values = [self.zero(); 8];
        let pairs = values.as_chunks_mut::<2>().0.iter_mut();
        for (i, (pair, q)) in pairs.zip(self.quarters(q)).enumerate() {
            let (scale, offset) = (self.splat(scale[i / 2]), self.splat(offset[i / 2]));
            let [a, b] = self.widen(q);
            *pair = [
                self.multiply_add(a, scale, offset),
                self.multiply_add(b, scale, offset),
            ];
        }
        values
    }

    #[inline(always)]
    fn halves_values(self, bytes: &[u8; 16], scale: f32, offset: f32) -> [float32x4_t; 8] {
        self.unsigned(self.halves(bytes), [scale; 2], [offset; 2])
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 32], scale: [f32; 2], offset: [f32; 2]) -> [[float32x4_t; 8]; 2] {
        let bytes = self.bytes(bytes);
        let (low, high) = (self.field(bytes, 0, 0xf), self.field(bytes, 4, 0xf));
        [
            self.unsigned(low, [scale[0]; 2], [offset[0]; 2]),
            self.unsigned(high, [scale[1]; 2], [offset[1]; 2]),
        ]
    }

    #[inline(always)]
    fn lookup(self, q: uint8x16x2_t, table: &[f32; 16], scale: f32) -> [float32x4_t; 8] {
        let mut codes = [0u8; 32];
        neon! {
            vst1q_u8(codes.as_mut_ptr(), q.0);
            vst1q_u8(codes.as_mut_ptr().add(16), q.1);
        }
        let mut values = [self.zero(); 8];
        let scale = self.splat(scale);
        for (value, codes) in values.iter_mut().zip(codes.as_chunks::<4>().0) {
            let found = codes.map(|q| table[usize::from(q & 0xf)]);
            *value = self.multiply(neon!(vld1q_f32(found.as_ptr())), scale);
        }
        values
    }

    #[inline(always)]
    fn scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        bytes.map(|scale| f32::from(scale) * factor)
    }

    #[inline(always)]
    fn signed_scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        bytes.map(|scale| f32::from(scale.cast_signed()) * factor)
    }
}
