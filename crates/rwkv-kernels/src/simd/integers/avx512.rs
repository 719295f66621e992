//! AVX-512: a step is a register.

use super::instructions::{Head, Integers, OF_16, OF_32, PAIRS, STEP, SUMS};
use crate::simd::{
    avx2::Avx2,
    avx512::Avx512,
    kernel::ROWS,
    vectors::{Vectors, Work},
};
use std::arch::{asm, x86_64::*};

/// Proof of [`Avx512`], and, where it says so, of VNNI: one instruction for two, with the same result.
#[derive(Clone, Copy)]
pub(super) struct Wide<const VNNI: bool>(Avx512);

impl Wide<false> {
    pub(super) fn new(level: Avx512) -> Self {
        Self(level)
    }
}

impl Wide<true> {
    pub(super) fn new(level: Avx512) -> Option<Self> {
        is_x86_feature_detected!("avx512vnni").then_some(Self(level))
    }
}

/// Instructions of this level, and loads from references that are as long as the register.
macro_rules! avx512 {
    ($($body:tt)*) => {{
        // SAFETY: a token of the level proves that the processor has these instructions, and what pointers point to is
        // a reference to at least as many bytes as are moved (unaligned).
        unsafe { $($body)* }
    }};
}

/// `vpdpwssd`. Of its intrinsic LLVM makes two instructions again, which take less time one after the other; here it is
/// their number that counts.
#[inline]
#[target_feature(enable = "avx512vnni,avx512f")]
fn add_pairs(a: __m512i, b: __m512i, mut sums: __m512i) -> __m512i {
    // SAFETY: it computes one register from three.
    unsafe {
        asm!(
            "vpdpwssd {0}, {1}, {2}",
            inout(zmm_reg) sums, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

impl<const VNNI: bool> Wide<VNNI> {
    #[inline(always)]
    fn narrow(self) -> Avx2 {
        self.0.narrow()
    }

    #[inline(always)]
    fn spread(scales: __m512i, pattern: &[u8; STEP]) -> __m512i {
        avx512! {
            let pattern = _mm512_loadu_si512(pattern.as_ptr().cast());
            _mm512_shuffle_epi8(scales, pattern)
        }
    }
}

impl<const VNNI: bool> Integers for Wide<VNNI> {
    type Codes = __m512i;
    type Sums = __m512i;
    type Lanes = __m512;
    type Scales = __m512i;

    const TOKENS: usize = 6;

    fn run<W: Work<Self>>(self, work: W) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn plain<V, W: Work<V>>(v: V, work: W) {
            work.run(v);
        }
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn vnni<V, W: Work<V>>(v: V, work: W) {
            work.run(v);
        }
        if VNNI {
            avx512!(vnni(self, work));
        } else {
            avx512!(plain(self, work));
        }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        Vectors::prefetch(self.narrow(), bytes);
    }

    #[inline(always)]
    fn half(self, bytes: [u8; 2]) -> f32 {
        Vectors::half(self.narrow(), bytes)
    }

    #[inline(always)]
    fn wide(self, bytes: &[u8; STEP]) -> __m512i {
        avx512!(_mm512_loadu_si512(bytes.as_ptr().cast()))
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; STEP / 2]) -> __m512i {
        avx512!(_mm512_broadcast_i64x4(_mm256_loadu_si256(
            bytes.as_ptr().cast()
        )))
    }

    #[inline(always)]
    fn shift(self, codes: __m512i, [first, last]: [i32; 2]) -> __m512i {
        let (a, b) = (i64::from(first), i64::from(last));
        avx512!(_mm512_rolv_epi64(
            codes,
            _mm512_setr_epi64(a, a, a, a, b, b, b, b)
        ))
    }

    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        avx512!(_mm512_and_si512(a, _mm512_set1_epi8(mask.cast_signed())))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_or_si512(a, b))
    }

    /// A head is 128 bits, so that a register has four, and what one row needs of them is a lane.
    #[inline(always)]
    fn heads(self, heads: [&[u8; 16]; ROWS], x_scale: f32) -> [Head<Self, __m512i>; ROWS] {
        /// The first or second number of 16 bits of each lane, four times.
        const fn first(number: i16) -> [i16; PAIRS] {
            let mut index = [0; PAIRS];
            let mut i = 0;
            while i < 16 {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_possible_wrap,
                    reason = "below 32"
                )]
                let lane = (i / 4) as i16;
                index[i] = 8 * lane + number;
                i += 1;
            }
            index
        }
        const D: [i16; PAIRS] = first(0);
        const DMIN: [i16; PAIRS] = first(1);
        avx512! {
            let load = |row: usize| _mm_loadu_si128(heads[row].as_ptr().cast());
            let heads = _mm512_castsi128_si512(load(0));
            let heads = _mm512_inserti32x4::<1>(heads, load(1));
            let heads = _mm512_inserti32x4::<2>(heads, load(2));
            let heads = _mm512_inserti32x4::<3>(heads, load(3));
            let half = |index: &[i16; PAIRS]| {
                let halves = _mm512_permutexvar_epi16(self.load(index), heads);
                _mm512_cvtph_ps(_mm512_castsi512_si256(halves))
            };
            let scale = _mm512_mul_ps(half(&D), _mm512_set1_ps(x_scale));
            let dmin = _mm512_sub_ps(_mm512_setzero_ps(), half(&DMIN));
            // Of each lane the second number of 32 bits has scales, the third minima, and the last of both.
            let six = _mm512_and_si512(heads, _mm512_set1_epi32(0x3f3f_3f3f));
            let last = _mm512_shuffle_epi32::<0b11_11_11_11>(heads);
            let four = _mm512_srlv_epi32(last, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 4, 0)));
            let four = _mm512_and_si512(four, _mm512_set1_epi32(0x0f0f_0f0f));
            let two = _mm512_and_si512(_mm512_srli_epi32::<2>(heads), _mm512_set1_epi32(0x3030_3030));
            let others = _mm512_or_si512(four, two);
            let scales = _mm512_unpackhi_epi8(
                _mm512_unpacklo_epi32(six, others),
                _mm512_setzero_si512(),
            );
            let minima = _mm512_maskz_unpackhi_epi32(0x3333, six, others);
            macro_rules! row {
                ($row:literal) => {{
                    let minima = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<$row>(minima));
                    let dmin = _mm512_shuffle_f32x4::<{ 0x55 * $row }>(dmin, dmin);
                    let minima = _mm512_mul_ps(_mm512_cvtepi32_ps(minima), dmin);
                    Head {
                        shared: _mm512_shuffle_i32x4::<{ 0x55 * $row }>(scales, scales),
                        scale: _mm512_shuffle_f32x4::<{ 0x55 * $row }>(scale, scale),
                        minima,
                    }
                }};
            }
            [row!(0), row!(1), row!(2), row!(3)]
        }
    }

    #[inline(always)]
    fn scales(self, bytes: [u8; 8]) -> __m512i {
        avx512!(_mm512_broadcast_i32x4(_mm_cvtepu8_epi16(_mm_loadl_epi64(
            bytes.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn signed_scales(self, bytes: [u8; 8]) -> __m512i {
        avx512!(_mm512_broadcast_i32x4(_mm_cvtepi8_epi16(_mm_loadl_epi64(
            bytes.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn of_32(self, scales: __m512i, step: usize) -> __m512i {
        Self::spread(scales, &OF_32[step])
    }

    #[inline(always)]
    fn of_16(self, scales: __m512i, step: usize) -> __m512i {
        Self::spread(scales, &OF_16[step])
    }

    #[inline(always)]
    fn pairs(self, a: __m512i, x: &[i8; STEP]) -> __m512i {
        avx512!(_mm512_maddubs_epi16(
            a,
            _mm512_loadu_si512(x.as_ptr().cast())
        ))
    }

    #[inline(always)]
    fn minus(self, a: __m512i, b: &[i16; PAIRS]) -> __m512i {
        avx512!(_mm512_sub_epi16(a, self.load(b)))
    }

    #[inline(always)]
    fn products(self, codes: __m512i, centre: u8, scales: __m512i) -> [[i16; PAIRS]; 2] {
        avx512! {
            let centre = _mm512_set1_epi16(i16::from(centre));
            let even = _mm512_and_si512(codes, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(codes);
            let mut products = [[0; PAIRS]; 2];
            for (out, codes) in products.iter_mut().zip([even, odd]) {
                let product = _mm512_mullo_epi16(_mm512_sub_epi16(codes, centre), scales);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), product);
            }
            products
        }
    }

    #[inline(always)]
    fn load(self, numbers: &[i16; PAIRS]) -> __m512i {
        avx512!(_mm512_loadu_si512(numbers.as_ptr().cast()))
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        avx512!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn add_pairs(self, a: __m512i, b: __m512i, sums: __m512i) -> __m512i {
        if VNNI {
            avx512!(add_pairs(a, b, sums))
        } else {
            avx512!(_mm512_add_epi32(sums, _mm512_madd_epi16(a, b)))
        }
    }

    #[inline(always)]
    fn join(self, high: __m512i, low: __m512i) -> __m512i {
        avx512!(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low))
    }

    #[inline(always)]
    fn zeros(self) -> __m512 {
        avx512!(_mm512_setzero_ps())
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn lanes(self, numbers: &[f32; SUMS]) -> __m512 {
        avx512!(_mm512_loadu_ps(numbers.as_ptr()))
    }

    #[inline(always)]
    fn add_scaled(self, sums: __m512i, scale: __m512, lanes: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, lanes))
    }

    #[inline(always)]
    fn minima(self, bytes: &[u8; SUMS], factor: f32) -> [f32; SUMS] {
        avx512! {
            let minima = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            let minima = _mm512_mul_ps(_mm512_cvtepi32_ps(minima), _mm512_set1_ps(factor));
            let mut out = [0.0; SUMS];
            _mm512_storeu_ps(out.as_mut_ptr(), minima);
            out
        }
    }

    #[inline(always)]
    fn add_products(self, a: __m512, b: &[f32; SUMS], lanes: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, _mm512_loadu_ps(b.as_ptr()), lanes))
    }

    #[inline(always)]
    fn sum4(self, lanes: [__m512; ROWS]) -> [f32; ROWS] {
        self.0.sum4(lanes)
    }
}
