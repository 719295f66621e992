//! AVX-512 F, BW, DQ and VL: 16 f32 in a register. Bytes are handled as AVX2 does.

use super::{
    avx2::Avx2,
    vectors::{BLOCK, Vectors, Work},
};
use crate::formats::{Lanes, Table};
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ and VL, and what [`Avx2`] stands for.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Instructions of this level, and loads from and stores to references that are as long as the register.
macro_rules! avx512 {
    ($($body:tt)*) => {{
        // SAFETY: a token of the level proves that the processor has these instructions, and what pointers point to is
        // a reference to at least as many bytes as are moved (unaligned).
        unsafe { $($body)* }
    }};
}

impl Avx512 {
    /// The proof, where it has.
    pub(super) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        (has && Avx2::new().is_some()).then_some(Self(()))
    }

    #[inline(always)]
    pub(super) fn narrow(self) -> Avx2 {
        // SAFETY: `new` asked for it.
        unsafe { Avx2::assume() }
    }

    /// What the 16 codes of 4 bits stand for. It fits a register, in which a code is looked up by its lowest bits: one
    /// instruction instead of a mask, a conversion and a multiply-add.
    #[inline(always)]
    fn table(self, scale: f32, offset: f32) -> __m512 {
        const CODES: [f32; 16] = [
            0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
        ];
        avx512! {
            let codes = _mm512_loadu_ps(CODES.as_ptr());
            _mm512_fmadd_ps(codes, _mm512_set1_ps(scale), _mm512_set1_ps(offset))
        }
    }
}

/// Sixteen dwords of each half of 32 bytes, made by `$widen`.
macro_rules! widen {
    ($q:expr, $widen:ident) => {
        [
            $widen(_mm256_castsi256_si128($q)),
            $widen(_mm256_extracti128_si256::<1>($q)),
        ]
    };
}

impl Vectors for Avx512 {
    type Lanes = __m512;
    type Values = [__m512; 2];
    type Bytes = __m256i;

    const REGISTERS: usize = 2;
    const TOKENS: usize = 6;

    fn run<W: Work<Self>>(self, work: W) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn enabled<W: Work<Avx512>>(v: Avx512, work: W) {
            work.run(v);
        }
        avx512!(enabled(self, work));
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        self.narrow().prefetch(bytes);
    }

    #[inline(always)]
    fn zero(self) -> __m512 {
        avx512!(_mm512_setzero_ps())
    }

    #[inline(always)]
    fn lanes(self, block: &[f32; BLOCK], register: usize) -> __m512 {
        let lanes = &block.as_chunks::<16>().0[register];
        avx512!(_mm512_loadu_ps(lanes.as_ptr()))
    }

    #[inline(always)]
    fn store_lanes(self, lanes: __m512, block: &mut [f32; BLOCK], register: usize) {
        let at = &mut block.as_chunks_mut::<16>().0[register];
        avx512!(_mm512_storeu_ps(at.as_mut_ptr(), lanes));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn sum4(self, lanes: [__m512; 4]) -> [f32; 4] {
        avx512! {
            let mut narrow = [_mm256_setzero_ps(); 4];
            for (narrow, lanes) in narrow.iter_mut().zip(lanes) {
                *narrow = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
            }
            self.narrow().sum4(narrow)
        }
    }

    #[inline(always)]
    fn add_products(self, w: [__m512; 2], x: &[f32; BLOCK], sums: __m512) -> __m512 {
        let sums = self.multiply_add(w[0], self.lanes(x, 0), sums);
        self.multiply_add(w[1], self.lanes(x, 1), sums)
    }

    #[inline(always)]
    fn store(self, values: [__m512; 2], block: &mut [f32; BLOCK]) {
        self.store_lanes(values[0], block, 0);
        self.store_lanes(values[1], block, 1);
    }

    #[inline(always)]
    fn half(self, bytes: [u8; 2]) -> f32 {
        self.narrow().half(bytes)
    }

    #[inline(always)]
    fn half4(self, bytes: [[u8; 2]; 4]) -> [f32; 4] {
        self.narrow().half4(bytes)
    }

    #[inline(always)]
    fn f32(self, bytes: &[u8; 128]) -> [__m512; 2] {
        let parts = bytes.as_chunks::<64>().0;
        avx512! {[
            _mm512_loadu_ps(parts[0].as_ptr().cast()),
            _mm512_loadu_ps(parts[1].as_ptr().cast()),
        ]}
    }

    #[inline(always)]
    fn f16(self, bytes: &[u8; 64]) -> [__m512; 2] {
        let parts = bytes.as_chunks::<32>().0;
        avx512! {[
            _mm512_cvtph_ps(_mm256_loadu_si256(parts[0].as_ptr().cast())),
            _mm512_cvtph_ps(_mm256_loadu_si256(parts[1].as_ptr().cast())),
        ]}
    }

    #[inline(always)]
    fn bf16(self, bytes: &[u8; 64]) -> [__m512; 2] {
        let parts = bytes.as_chunks::<32>().0;
        avx512! {
            let mut values = [_mm512_setzero_ps(); 2];
            for (value, part) in values.iter_mut().zip(parts) {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(part.as_ptr().cast()));
                *value = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide));
            }
            values
        }
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> __m256i {
        self.narrow().bytes(bytes)
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 16]) -> __m256i {
        self.narrow().halves(bytes)
    }

    #[inline(always)]
    fn pairs(self, bytes: &[u8; 16]) -> __m256i {
        self.narrow().pairs(bytes)
    }

    #[inline(always)]
    fn field(self, bytes: __m256i, shift: u32, mask: u8) -> __m256i {
        self.narrow().field(bytes, shift, mask)
    }

    #[inline(always)]
    fn up<const BY: i32>(self, bytes: __m256i) -> __m256i {
        self.narrow().up::<BY>(bytes)
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        self.narrow().or(a, b)
    }

    #[inline(always)]
    fn fifth_bits(self, bits: [u8; 4]) -> __m256i {
        avx512!(_mm256_maskz_set1_epi8(u32::from_le_bytes(bits), 0x10))
    }

    #[inline(always)]
    fn minus(self, a: __m256i, b: u8) -> __m256i {
        self.narrow().minus(a, b)
    }

    #[inline(always)]
    fn signed(self, q: __m256i, scale: [f32; 2]) -> [__m512; 2] {
        avx512! {
            let [a, b] = widen!(q, _mm512_cvtepi8_epi32);
            [
                _mm512_mul_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(scale[0])),
                _mm512_mul_ps(_mm512_cvtepi32_ps(b), _mm512_set1_ps(scale[1])),
            ]
        }
    }

    #[inline(always)]
    fn unsigned(self, q: __m256i, scale: [f32; 2], offset: [f32; 2]) -> [__m512; 2] {
        avx512! {
            let [a, b] = widen!(q, _mm512_cvtepu8_epi32);
            [
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(scale[0]), _mm512_set1_ps(offset[0])),
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), _mm512_set1_ps(scale[1]), _mm512_set1_ps(offset[1])),
            ]
        }
    }

    #[inline(always)]
    fn halves_values(self, bytes: &[u8; 16], scale: f32, offset: f32) -> [__m512; 2] {
        let table = self.table(scale, offset);
        avx512! {
            let q = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            [
                _mm512_permutexvar_ps(q, table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(q), table),
            ]
        }
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 32], scale: [f32; 2], offset: [f32; 2]) -> [[__m512; 2]; 2] {
        let (low, high) = (
            self.table(scale[0], offset[0]),
            self.table(scale[1], offset[1]),
        );
        let [first, last] = [&bytes.as_chunks::<16>().0[0], &bytes.as_chunks::<16>().0[1]];
        avx512! {
            let a = _mm512_cvtepu8_epi32(_mm_loadu_si128(first.as_ptr().cast()));
            let b = _mm512_cvtepu8_epi32(_mm_loadu_si128(last.as_ptr().cast()));
            [
                [_mm512_permutexvar_ps(a, low), _mm512_permutexvar_ps(b, low)],
                [
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(a), high),
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(b), high),
                ],
            ]
        }
    }

    #[inline(always)]
    fn lookup(self, q: __m256i, table: &[f32; 16], scale: f32) -> [__m512; 2] {
        avx512! {
            let table = _mm512_mul_ps(_mm512_loadu_ps(table.as_ptr()), _mm512_set1_ps(scale));
            let [a, b] = widen!(q, _mm512_cvtepu8_epi32);
            [_mm512_permutexvar_ps(a, table), _mm512_permutexvar_ps(b, table)]
        }
    }

    #[inline(always)]
    fn scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        self.narrow().scales(bytes, factor)
    }

    #[inline(always)]
    fn signed_scales(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        self.narrow().signed_scales(bytes, factor)
    }

    #[inline(always)]
    fn nearest(self, table: &Table, y: &Lanes) -> Lanes {
        let (values, steps) = (table.values(), table.steps());
        let mut out = [0.0; 16];
        avx512! {
            let y = _mm512_loadu_ps(y.as_ptr());
            let steps = _mm512_loadu_ps(steps.as_ptr());
            let mut place = _mm512_setzero_si512();
            for half in [8, 4, 2, 1] {
                let later = _mm512_or_si512(place, _mm512_set1_epi32(half));
                let step = _mm512_permutexvar_ps(later, steps);
                place = _mm512_mask_mov_epi32(place, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, step), later);
            }
            let found = _mm512_permutexvar_ps(place, _mm512_loadu_ps(values.as_ptr()));
            _mm512_storeu_ps(out.as_mut_ptr(), found);
        }
        out
    }
}
