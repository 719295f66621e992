//! AVX2: a step is two registers.

use super::instructions::{Integers, OF_16, OF_32, PAIRS, STEP, SUMS};
use crate::simd::{
    avx2::Avx2,
    kernel::ROWS,
    vectors::{Vectors, Work},
};
use std::arch::x86_64::*;

/// Instructions of this level, and loads from and stores to references that are as long as the register.
macro_rules! avx2 {
    ($($body:tt)*) => {{
        // SAFETY: a token of the level proves that the processor has these instructions, and what pointers point to is
        // a reference to at least as many bytes as are moved (unaligned).
        unsafe { $($body)* }
    }};
}

/// Both halves of a step.
type Two = [__m256i; 2];

#[inline(always)]
fn load_two<T>(from: &[T]) -> Two {
    let half = from.len() / 2;
    debug_assert_eq!(size_of_val(from), STEP, "a step's bytes");
    let (first, last) = from.split_at(half);
    avx2! {[
        _mm256_loadu_si256(first.as_ptr().cast()),
        _mm256_loadu_si256(last.as_ptr().cast()),
    ]}
}

#[inline(always)]
fn spread(scales: __m128i, pattern: &[u8; STEP]) -> Two {
    let pattern = load_two(pattern);
    avx2! {
        let scales = _mm256_broadcastsi128_si256(scales);
        [
            _mm256_shuffle_epi8(scales, pattern[0]),
            _mm256_shuffle_epi8(scales, pattern[1]),
        ]
    }
}

impl Integers for Avx2 {
    type Codes = Two;
    type Sums = Two;
    type Lanes = [__m256; 2];
    type Scales = __m128i;

    const TOKENS: usize = 1;

    fn run<W: Work<Self>>(self, work: W) {
        Vectors::run(self, work);
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        Vectors::prefetch(self, bytes);
    }

    #[inline(always)]
    fn half(self, bytes: [u8; 2]) -> f32 {
        Vectors::half(self, bytes)
    }

    #[inline(always)]
    fn wide(self, bytes: &[u8; STEP]) -> Two {
        load_two(bytes)
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; STEP / 2]) -> Two {
        avx2!([_mm256_loadu_si256(bytes.as_ptr().cast()); 2])
    }

    #[inline(always)]
    fn shift(self, [a, b]: Two, [first, last]: [i32; 2]) -> Two {
        let one = |a, up: i32| {
            avx2! {
                let by = _mm_cvtsi32_si128(up.abs());
                if up < 0 { _mm256_srl_epi16(a, by) } else { _mm256_sll_epi16(a, by) }
            }
        };
        [one(a, first), one(b, last)]
    }

    #[inline(always)]
    fn and(self, a: Two, mask: u8) -> Two {
        avx2! {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            [_mm256_and_si256(a[0], mask), _mm256_and_si256(a[1], mask)]
        }
    }

    #[inline(always)]
    fn or(self, a: Two, b: Two) -> Two {
        avx2!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn scales(self, bytes: [u8; 8]) -> __m128i {
        avx2!(_mm_cvtepu8_epi16(_mm_loadl_epi64(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn signed_scales(self, bytes: [u8; 8]) -> __m128i {
        avx2!(_mm_cvtepi8_epi16(_mm_loadl_epi64(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn of_32(self, scales: __m128i, step: usize) -> Two {
        spread(scales, &OF_32[step])
    }

    #[inline(always)]
    fn of_16(self, scales: __m128i, step: usize) -> Two {
        spread(scales, &OF_16[step])
    }

    #[inline(always)]
    fn pairs(self, a: Two, x: &[i8; STEP]) -> Two {
        let x = load_two(x);
        avx2!([
            _mm256_maddubs_epi16(a[0], x[0]),
            _mm256_maddubs_epi16(a[1], x[1])
        ])
    }

    #[inline(always)]
    fn minus(self, a: Two, b: &[i16; PAIRS]) -> Two {
        let b = load_two(b);
        avx2!([_mm256_sub_epi16(a[0], b[0]), _mm256_sub_epi16(a[1], b[1])])
    }

    #[inline(always)]
    fn products(self, codes: Two, centre: u8, scales: Two) -> [[i16; PAIRS]; 2] {
        let mut products = [[0; PAIRS]; 2];
        avx2! {
            let centre = _mm256_set1_epi16(i16::from(centre));
            for half in 0..2 {
                let even = _mm256_and_si256(codes[half], _mm256_set1_epi16(0xff));
                let odd = _mm256_srli_epi16::<8>(codes[half]);
                for (out, codes) in products.iter_mut().zip([even, odd]) {
                    let product = _mm256_mullo_epi16(_mm256_sub_epi16(codes, centre), scales[half]);
                    let out = &mut out.as_chunks_mut::<{ PAIRS / 2 }>().0[half];
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), product);
                }
            }
        }
        products
    }

    #[inline(always)]
    fn load(self, numbers: &[i16; PAIRS]) -> Two {
        load_two(numbers)
    }

    #[inline(always)]
    fn zero(self) -> Two {
        avx2!([_mm256_setzero_si256(); 2])
    }

    #[inline(always)]
    fn add_pairs(self, a: Two, b: Two, sums: Two) -> Two {
        avx2!([
            _mm256_add_epi32(sums[0], _mm256_madd_epi16(a[0], b[0])),
            _mm256_add_epi32(sums[1], _mm256_madd_epi16(a[1], b[1])),
        ])
    }

    #[inline(always)]
    fn join(self, high: Two, low: Two) -> Two {
        avx2!([
            _mm256_add_epi32(_mm256_slli_epi32::<8>(high[0]), low[0]),
            _mm256_add_epi32(_mm256_slli_epi32::<8>(high[1]), low[1]),
        ])
    }

    #[inline(always)]
    fn zeros(self) -> [__m256; 2] {
        avx2!([_mm256_setzero_ps(); 2])
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        avx2!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    fn lanes(self, numbers: &[f32; SUMS]) -> [__m256; 2] {
        let [first, last] = [0, 1].map(|half| &numbers.as_chunks::<8>().0[half]);
        avx2!([
            _mm256_loadu_ps(first.as_ptr()),
            _mm256_loadu_ps(last.as_ptr())
        ])
    }

    #[inline(always)]
    fn add_scaled(self, sums: Two, scale: [__m256; 2], lanes: [__m256; 2]) -> [__m256; 2] {
        avx2!([
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[0]), scale[0], lanes[0]),
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[1]), scale[1], lanes[1]),
        ])
    }

    #[inline(always)]
    fn minima(self, bytes: &[u8; SUMS], factor: f32) -> [f32; SUMS] {
        let mut out = [0.0; SUMS];
        for (out, minimum) in out.iter_mut().zip(bytes) {
            *out = f32::from(*minimum) * factor;
        }
        out
    }

    #[inline(always)]
    fn add_products(self, a: [__m256; 2], b: &[f32; SUMS], lanes: [__m256; 2]) -> [__m256; 2] {
        let b = Integers::lanes(self, b);
        avx2!([
            _mm256_fmadd_ps(a[0], b[0], lanes[0]),
            _mm256_fmadd_ps(a[1], b[1], lanes[1]),
        ])
    }

    #[inline(always)]
    fn sum4(self, lanes: [[__m256; 2]; ROWS]) -> [f32; ROWS] {
        let [a, b, c, d] = lanes;
        let both = avx2! {[
            _mm256_add_ps(a[0], a[1]),
            _mm256_add_ps(b[0], b[1]),
            _mm256_add_ps(c[0], c[1]),
            _mm256_add_ps(d[0], d[1]),
        ]};
        Vectors::sum4(self, both)
    }
}
