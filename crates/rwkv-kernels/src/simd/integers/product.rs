//! Matrix products, cut into segments of columns, groups of rows and threads.

use super::{
    avx512::Wide,
    coded::{self, Coded},
    instructions::{BLOCK, Integers},
    kernel::{self, Expanded},
    rounded::{Halves, Round, Rounded, Wholes},
};
use crate::{
    Format, Matrix,
    simd::{
        Simd,
        avx2::Avx2,
        avx512::Avx512,
        kernel::ROWS,
        shares::{Outputs, PANEL, Segments, by_share},
        vectors::Work,
    },
};
use bytemuck::Zeroable;
use rayon::prelude::*;
use std::{marker::PhantomData, ops::Range};

/// Blocks of a segment: 1024 columns, of which four rows and six tokens fit a cache of 32 KiB.
const SEGMENT: usize = 4;

/// Tokens that are rounded by threads side by side.
const SIDE_BY_SIDE: usize = 32;

/// Whether the level has products in integers of the format.
pub(in crate::simd) fn has(level: Simd, format: Format) -> bool {
    let coded = matches!(
        format,
        Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K
    );
    coded && matches!(level, Simd::Avx2 | Simd::Avx512) && level.is_available()
}

/// As [`matmul`](crate::simd::matmul) for what [`has`] products in integers, of sizes that fit. Says whether it is done:
/// not where an x cannot be rounded.
#[must_use]
pub(in crate::simd) fn matmul(level: Simd, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) -> bool {
    match level {
        Simd::Avx2 => Avx2::new().is_some_and(|v| with_level(v, x, weight, y)),
        _ => Avx512::new().is_some_and(|v| match Wide::<true>::new(v) {
            Some(v) => with_level(v, x, weight, y),
            None => with_level(Wide::<false>::new(v), x, weight, y),
        }),
    }
}

pub(super) fn with_level<V: Integers>(v: V, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) -> bool {
    match weight.format() {
        Format::Q2K => run::<V, coded::Q2K>(v, x, weight, y),
        Format::Q3K => run::<V, coded::Q3K>(v, x, weight, y),
        Format::Q4K => run::<V, coded::Q4K>(v, x, weight, y),
        Format::Q5K => run::<V, coded::Q5K>(v, x, weight, y),
        Format::Q6K => run::<V, coded::Q6K>(v, x, weight, y),
        _ => false,
    }
}

fn run<V: Integers, F: Coded<V>>(v: V, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) -> bool {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let (tokens, blocks) = (x.len() / cols.max(1), cols / BLOCK);
    let segments = Segments::new(weight, SEGMENT * F::BYTES);
    let y = Outputs::new(y, rows);
    if tokens == 1 {
        let Some(x) = round::<V, F, Halves>(v, x, cols) else {
            return false;
        };
        let product = Product {
            x: &x,
            blocks,
            tokens,
            segments,
            y,
        };
        by_share(rows, ROWS, cols, |rows| {
            v.run(One::<F>(Share::new(&product, rows)));
        });
    } else {
        let Some(x) = round::<V, F, Wholes>(v, x, cols) else {
            return false;
        };
        let product = Product {
            x: &x,
            blocks,
            tokens,
            segments,
            y,
        };
        // While x stays in the first cache four rows at a time can meet it.
        let height = if tokens <= 2 * V::TOKENS { ROWS } else { PANEL };
        by_share(rows, height, tokens * cols, |rows| {
            v.run(Many::<F> {
                share: Share::new(&product, rows),
                height,
            });
        });
    }
    true
}

/// x as products read it, where it can be rounded.
fn round<V: Integers, F: Coded<V>, R: Rounded>(v: V, x: &[f32], cols: usize) -> Option<Vec<R>> {
    let mut out = vec![R::zeroed(); x.len() / BLOCK];
    let round = |(x, out): (&[f32], &mut [R])| {
        let mut rounded = false;
        v.run(Round {
            x,
            centre: F::CENTRE,
            groups: F::MINIMA,
            out,
            rounded: &mut rounded,
        });
        rounded
    };
    let (tokens, blocks) = (SIDE_BY_SIDE * cols, SIDE_BY_SIDE * cols / BLOCK);
    let rounded = if x.len() <= tokens || rayon::current_num_threads() == 1 {
        round((x, &mut out))
    } else {
        let parts = x.par_chunks(tokens).zip(out.par_chunks_mut(blocks));
        parts.all(round)
    };
    rounded.then_some(out)
}

/// One product.
struct Product<'a, R> {
    /// Tokens × blocks.
    x: &'a [R],
    blocks: usize,
    tokens: usize,
    segments: Segments<'a>,
    y: Outputs<'a>,
}

impl<R> Product<'_, R> {
    /// A segment of a token.
    #[inline(always)]
    fn x(&self, token: usize, segment: usize) -> &[R] {
        let x = &self.x[token * self.blocks..(token + 1) * self.blocks];
        &x[segment * SEGMENT..self.blocks.min((segment + 1) * SEGMENT)]
    }
}

/// The share of one thread.
struct Share<'a, R, F> {
    product: &'a Product<'a, R>,
    rows: Range<usize>,
    format: PhantomData<F>,
}

impl<'a, R, F> Share<'a, R, F> {
    fn new(product: &'a Product<'a, R>, rows: Range<usize>) -> Self {
        Self {
            product,
            rows,
            format: PhantomData,
        }
    }
}

/// Its products with one token.
struct One<'a, F>(Share<'a, Halves, F>);

impl<V: Integers, F: Coded<V>> Work<V> for One<'_, F> {
    #[inline(always)]
    fn run(self, v: V) {
        let Share { product, rows, .. } = self.0;
        for row in rows.step_by(ROWS) {
            for segment in 0..product.segments.count() {
                for bytes in product.segments.ahead(row, segment) {
                    v.prefetch(bytes);
                }
                let x = product.x(0, segment);
                let sums = kernel::dot::<V, F>(v, product.segments.of(row, segment), x);
                // SAFETY: shares have different rows, of whole groups but for the last.
                unsafe { product.y.put(0, row, sums, segment > 0) };
            }
        }
    }
}

/// Its products with some tokens, `height` rows at a time.
struct Many<'a, F> {
    share: Share<'a, Wholes, F>,
    height: usize,
}

impl<V: Integers, F: Coded<V>> Work<V> for Many<'_, F> {
    #[inline(always)]
    fn run(self, v: V) {
        let Share { product, rows, .. } = self.share;
        let mut panel = vec![Expanded::zeroed(); self.height * product.blocks.min(SEGMENT)];
        for first in rows.clone().step_by(self.height) {
            let last = rows.end.min(first + self.height);
            for segment in 0..product.segments.count() {
                let length = product.x(0, segment).len();
                let groups = panel.chunks_exact_mut(ROWS * length);
                for (row, out) in (first..last).step_by(ROWS).zip(groups) {
                    let packed = product.segments.of(row, segment);
                    for (packed, out) in packed.into_iter().zip(out.chunks_exact_mut(length)) {
                        kernel::expand::<V, F>(v, packed, out);
                    }
                }
                let values = &panel[..(last - first).next_multiple_of(ROWS) * length];
                let panel = Panel {
                    product,
                    values,
                    row: first,
                    segment,
                };
                // A function of its own: it is the same for every format with minima, and without.
                if F::MINIMA > 0 {
                    v.run(Tiles::<true>(panel));
                } else {
                    v.run(Tiles::<false>(panel));
                }
            }
        }
    }
}

/// A segment of some rows, expanded, that meets all tokens.
struct Panel<'a> {
    product: &'a Product<'a, Wholes>,
    /// Rows × blocks.
    values: &'a [Expanded],
    /// The first.
    row: usize,
    segment: usize,
}

/// Its products, with or without minima.
struct Tiles<'a, const MINIMA: bool>(Panel<'a>);

/// Products of `$n` tokens of `$panel` from `$token` on, as `$tile` makes them. Written out: a function that gets another
/// one might not be inlined, and would lack the level's instructions.
macro_rules! tiles {
    ($v:ident, $panel:ident, $token:ident, $n:literal, $tile:path) => {{
        let (product, segment) = ($panel.product, $panel.segment);
        let mut x = [product.x($token, segment); $n];
        for (i, x) in x.iter_mut().enumerate() {
            *x = product.x($token + i, segment);
        }
        let length = x[0].len();
        for (group, w) in $panel.values.chunks_exact(ROWS * length).enumerate() {
            let w = [
                &w[..length],
                &w[length..2 * length],
                &w[2 * length..3 * length],
                &w[3 * length..],
            ];
            let sums = $tile($v, w, x);
            for (i, sums) in sums.into_iter().enumerate() {
                let row = $panel.row + ROWS * group;
                // SAFETY: shares have different rows, of whole groups but for the last.
                unsafe { product.y.put($token + i, row, sums, segment > 0) };
            }
        }
        $n
    }};
}

impl<V: Integers, const MINIMA: bool> Work<V> for Tiles<'_, MINIMA> {
    #[inline(always)]
    fn run(self, v: V) {
        let panel = self.0;
        let tokens = panel.product.tokens;
        let mut token = 0;
        while token < tokens {
            token += match (tokens - token).min(V::TOKENS) {
                1 => tiles!(v, panel, token, 1, kernel::tile1::<V, MINIMA>),
                2 => tiles!(v, panel, token, 2, kernel::tile2::<V, MINIMA>),
                3 => tiles!(v, panel, token, 3, kernel::tile3::<V, MINIMA>),
                4 => tiles!(v, panel, token, 4, kernel::tile4::<V, MINIMA>),
                5 => tiles!(v, panel, token, 5, kernel::tile5::<V, MINIMA>),
                _ => tiles!(v, panel, token, 6, kernel::tile6::<V, MINIMA>),
            };
        }
    }
}
