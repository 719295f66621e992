//! AVX2 with FMA and F16C: 8 f32 in a register.

use super::vectors::{BLOCK, Vectors, Work};
use crate::formats::{Lanes, Table};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, where it has.
    pub(super) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// The proof, where a wider one was made.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    pub(super) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Instructions of this level, and loads from and stores to references that are as long as the register.
macro_rules! avx2 {
    ($($body:tt)*) => {{
        // SAFETY: a token of the level proves that the processor has these instructions, and what pointers point to is
        // a reference to at least as many bytes as are moved (unaligned).
        unsafe { $($body)* }
    }};
}

/// Eight dwords of each quarter of 32 bytes, made by `$widen`.
macro_rules! widen {
    ($q:expr, $widen:ident) => {{
        let (low, high) = (
            _mm256_castsi256_si128($q),
            _mm256_extracti128_si256::<1>($q),
        );
        [
            $widen(low),
            $widen(_mm_srli_si128::<8>(low)),
            $widen(high),
            $widen(_mm_srli_si128::<8>(high)),
        ]
    }};
}

impl Vectors for Avx2 {
    type Lanes = __m256;
    type Values = [__m256; 4];
    type Bytes = __m256i;

    const REGISTERS: usize = 4;
    const TOKENS: usize = 3;

    fn run<W: Work<Self>>(self, work: W) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<W: Work<Avx2>>(v: Avx2, work: W) {
            work.run(v);
        }
        avx2!(enabled(self, work));
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            avx2!(_mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()));
        }
    }

    #[inline(always)]
    fn zero(self) -> __m256 {
        avx2!(_mm256_setzero_ps())
    }

    #[inline(always)]
    fn lanes(self, block: &[f32; BLOCK], register: usize) -> __m256 {
        let lanes = &block.as_chunks::<8>().0[register];
        avx2!(_mm256_loadu_ps(lanes.as_ptr()))
    }

    #[inline(always)]
    fn store_lanes(self, lanes: __m256, block: &mut [f32; BLOCK], register: usize) {
        let at = &mut block.as_chunks_mut::<8>().0[register];
        avx2!(_mm256_storeu_ps(at.as_mut_ptr(), lanes));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        avx2!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn multiply(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        avx2!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        avx2! {
            let sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }

    #[inline(always)]
    fn add_products(self, w: [__m256; 4], x: &[f32; BLOCK], sums: __m256) -> __m256 {
        let sums = self.multiply_add(w[0], self.lanes(x, 0), sums);
        let sums = self.multiply_add(w[1], self.lanes(x, 1), sums);
        let sums = self.multiply_add(w[2], self.lanes(x, 2), sums);
        self.multiply_add(w[3], self.lanes(x, 3), sums)
    }

    #[inline(always)]
    fn store(self, values: [__m256; 4], block: &mut [f32; BLOCK]) {
        for (i, lanes) in values.into_iter().enumerate() {
            self.store_lanes(lanes, block, i);
        }
    }

    #[inline(always)]
    fn half(self, bytes: [u8; 2]) -> f32 {
        let bits = i32::from(u16::from_le_bytes(bytes));
        avx2!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))))
    }

    #[inline(always)]
    fn half4(self, bytes: [[u8; 2]; 4]) -> [f32; 4] {
        let a = u64::from(u16::from_le_bytes(bytes[0]));
        let b = u64::from(u16::from_le_bytes(bytes[1]));
        let c = u64::from(u16::from_le_bytes(bytes[2]));
        let d = u64::from(u16::from_le_bytes(bytes[3]));
        let bits = (a | b << 16 | c << 32 | d << 48).cast_signed();
        avx2! {
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm_cvtph_ps(_mm_cvtsi64_si128(bits)));
            out
        }
    }

    #[inline(always)]
    fn f32(self, bytes: &[u8; 128]) -> [__m256; 4] {
        let parts = bytes.as_chunks::<32>().0;
        avx2! {[
            _mm256_loadu_ps(parts[0].as_ptr().cast()),
            _mm256_loadu_ps(parts[1].as_ptr().cast()),
            _mm256_loadu_ps(parts[2].as_ptr().cast()),
            _mm256_loadu_ps(parts[3].as_ptr().cast()),
        ]}
    }

    #[inline(always)]
    fn f16(self, bytes: &[u8; 64]) -> [__m256; 4] {
        let parts = bytes.as_chunks::<16>().0;
        avx2! {[
            _mm256_cvtph_ps(_mm_loadu_si128(parts[0].as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(parts[1].as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(parts[2].as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(parts[3].as_ptr().cast())),
        ]}
    }

    #[inline(always)]
    fn bf16(self, bytes: &[u8; 64]) -> [__m256; 4] {
        let parts = bytes.as_chunks::<16>().0;
        avx2! {
            let mut values = [_mm256_setzero_ps(); 4];
            for (value, part) in values.iter_mut().zip(parts) {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(part.as_ptr().cast()));
                *value = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide));
            }
            values
        }
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> __m256i {
        avx2!(_mm256_loadu_si256(bytes.as_ptr().cast()))
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 16]) -> __m256i {
        avx2! {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bytes), _mm_srli_epi16::<4>(bytes));
            _mm256_and_si256(both, _mm256_set1_epi8(0xf))
        }
    }

    #[inline(always)]
    fn pairs(self, bytes: &[u8; 16]) -> __m256i {
        avx2! {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let high = _mm_srli_epi16::<4>(bytes);
            let both = _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(_mm_unpacklo_epi8(bytes, high)),
                _mm_unpackhi_epi8(bytes, high),
            );
            _mm256_and_si256(both, _mm256_set1_epi8(0xf))
        }
    }

    #[inline(always)]
    fn field(self, bytes: __m256i, shift: u32, mask: u8) -> __m256i {
        avx2! {
            let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift.cast_signed()));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask.cast_signed()))
        }
    }

    #[inline(always)]
    fn up<const BY: i32>(self, bytes: __m256i) -> __m256i {
        avx2!(_mm256_slli_epi16::<BY>(bytes))
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn fifth_bits(self, bits: [u8; 4]) -> __m256i {
        avx2! {
            // Each byte eight times, of which each keeps one bit.
            let copies = _mm256_shuffle_epi8(
                _mm256_set1_epi32(i32::from_le_bytes(bits)),
                _mm256_set_epi64x(
                    0x0303_0303_0303_0303,
                    0x0202_0202_0202_0202,
                    0x0101_0101_0101_0101,
                    0,
                ),
            );
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(copies, own), own);
            _mm256_and_si256(set, _mm256_set1_epi8(0x10))
        }
    }

    #[inline(always)]
    fn minus(self, a: __m256i, b: u8) -> __m256i {
        avx2!(_mm256_sub_epi8(a, _mm256_set1_epi8(b.cast_signed())))
    }

    #[inline(always)]
    fn signed(self, q: __m256i, scale: [f32; 2]) -> [__m256; 4] {
        avx2! {
            let [a, b, c, d] = widen!(q, _mm256_cvtepi8_epi32);
            let (first, last) = (_mm256_set1_ps(scale[0]), _mm256_set1_ps(scale[1]));
            [
                _mm256_mul_ps(_mm256_cvtepi32_ps(a), first),
                _mm256_mul_ps(_mm256_cvtepi32_ps(b), first),
                _mm256_mul_ps(_mm256_cvtepi32_ps(c), last),
                _mm256_mul_ps(_mm256_cvtepi32_ps(d), last),
            ]
        }
    }

    #[inline(always)]
    fn unsigned(self, q: __m256i, scale: [f32; 2], offset: [f32; 2]) -> [__m256; 4] {
        avx2! {
            let [a, b, c, d] = widen!(q, _mm256_cvtepu8_epi32);
            let (scale, offset) = (
                [_mm256_set1_ps(scale[0]), _mm256_set1_ps(scale[1])],
                [_mm256_set1_ps(offset[0]), _mm256_set1_ps(offset[1])],
            );
            [
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), scale[0], offset[0]),
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(b), scale[0], offset[0]),
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(c), scale[1], offset[1]),
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), scale[1], offset[1]),
            ]
        }
    }

    #[inline(always)]
    fn halves_values(self, bytes: &[u8; 16], scale: f32, offset: f32) -> [__m256; 4] {
        self.unsigned(self.halves(bytes), [scale; 2], [offset; 2])
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 32], scale: [f32; 2], offset: [f32; 2]) -> [[__m256; 4]; 2] {
        let bytes = self.bytes(bytes);
        let (low, high) = (self.field(bytes, 0, 0xf), self.field(bytes, 4, 0xf));
        [
            self.unsigned(low, [scale[0]; 2], [offset[0]; 2]),
            self.unsigned(high, [scale[1]; 2], [offset[1]; 2]),
        ]
    }

    #[inline(always)]
    fn lookup(self, q: __m256i, table: &[f32; 16], scale: f32) -> [__m256; 4] {
        let [first, last] = [&table.as_chunks::<8>().0[0], &table.as_chunks::<8>().0[1]];
        avx2! {
            let scale = _mm256_set1_ps(scale);
            let first = _mm256_mul_ps(_mm256_loadu_ps(first.as_ptr()), scale);
            let last = _mm256_mul_ps(_mm256_loadu_ps(last.as_ptr()), scale);
            let mut values = [first; 4];
            for (value, q) in values.iter_mut().zip(widen!(q, _mm256_cvtepu8_epi32)) {
                // Bit 3 of the code, as a sign, takes the upper half of the table.
                *value = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(first, q),
                    _mm256_permutevar8x32_ps(last, q),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<28>(q)),
                );
            }
            values
        }
    }

    #[inline(always)]
    fn scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        avx2! {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
            let scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            let mut out = [0.0; 8];
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(scales, _mm256_set1_ps(factor)));
            out
        }
    }

    #[inline(always)]
    fn signed_scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        avx2! {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
            let scales = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            let mut out = [0.0; 8];
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(scales, _mm256_set1_ps(factor)));
            out
        }
    }

    #[inline(always)]
    fn nearest(self, table: &Table, y: &Lanes) -> Lanes {
        let (values, tree) = (table.values(), table.tree());
        let mut out = [0.0; 16];
        let outs = out.as_chunks_mut::<8>().0;
        for (y, out) in y.as_chunks::<8>().0.iter().zip(outs) {
            avx2! {
                let y = _mm256_loadu_ps(y.as_ptr());
                // Above what is at a node, whose place is looked up by its lowest three bits.
                let above = |node| _mm256_cmp_ps::<_CMP_GT_OQ>(y, node);
                let below = |node, above| {
                    _mm256_sub_epi32(_mm256_add_epi32(node, node), _mm256_castps_si256(above))
                };
                let [first, last] = [tree.as_ptr(), tree.as_ptr().add(8)].map(|at| _mm256_loadu_ps(at));
                let upper = above(_mm256_set1_ps(tree[1]));
                let node = below(_mm256_set1_epi32(1), upper);
                let node = below(node, above(_mm256_permutevar8x32_ps(first, node)));
                let node = below(node, above(_mm256_permutevar8x32_ps(first, node)));
                let node = below(node, above(_mm256_permutevar8x32_ps(last, node)));
                let [first, last] = [values.as_ptr(), values.as_ptr().add(8)].map(|at| _mm256_loadu_ps(at));
                let found = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(first, node),
                    _mm256_permutevar8x32_ps(last, node),
                    upper,
                );
                _mm256_storeu_ps(out.as_mut_ptr(), found);
            }
        }
        out
    }
}
