//! Matrix products, cut into segments of columns, groups of rows and threads.

#[cfg(target_arch = "x86_64")]
use super::integers;
use super::{
    Simd,
    kernel::{self, ROWS},
    level::at_level,
    packed::{self, Packed},
    shares::{Outputs, PANEL, Segments, by_share},
    vectors::{BLOCK, Vectors, Work},
};
use crate::{
    Format, Matrix, Result,
    formats::Block,
    ops::{self, matmul::matmul_tokens},
};
use bytemuck::{Pod, Zeroable};
use std::{marker::PhantomData, ops::Range};

/// Blocks of a segment: 1024 columns, of which four rows and six tokens fit a cache of 48 KiB.
const SEGMENT: usize = 32;

/// `y[t] = W x[t]` for `x` of `tokens · cols`, into `y` of `tokens · rows`, as [`ops::matmul`](ops::matmul()) has it, with the
/// instructions of `level`; where the processor lacks them it is that twin.
///
/// Weights are expanded to the same f32 as there and x is not rounded, so that only the order of a sum's terms differs.
/// The K formats on x86 are the exception: there codes meet x as integers, x rounded to 16 bits in blocks of 256. The
/// block's largest |x| is 16,319 to 32,639 steps, so that its part of a sum is off by up to 1 / 32,638 of that times
/// Σ |w|, and by f32's rounding of what codes and minima add. A token with an x of 2⁶⁴ or more, or that is no number,
/// has floats there too.
///
/// What a token becomes depends on the level and the number of columns, not on the other tokens or on threads.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the sizes do not fit.
pub fn matmul(level: Simd, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) -> Result<()> {
    let tokens = matmul_tokens(x, weight, y)?;
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    if tokens == 0 || rows == 0 {
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if integers::has(level, weight.format()) {
        if integers::matmul(level, x, weight, y) {
            return Ok(());
        }
        if tokens > 1 {
            let mut each = x.chunks_exact(cols).zip(y.chunks_exact_mut(rows));
            return each.try_for_each(|(x, y)| matmul(level, x, weight, y));
        }
    }
    at_level!(level, v => {
        with_level(v, x, weight, y);
        Ok(())
    });
    ops::matmul(x, weight, y)
}

fn with_level<V: Vectors>(v: V, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) {
    let (rows, cols) = (weight.shape().rows.0, weight.shape().cols.0);
    let tokens = x.len() / cols.max(1);
    let x = Inputs::new(x, cols, tokens, rows);
    let spec = weight.format().spec();
    let product = Product {
        x: x.blocks(),
        blocks: cols.div_ceil(BLOCK),
        tokens,
        segments: Segments::new(weight, SEGMENT * BLOCK / spec.block() * spec.block_bytes()),
        y: Outputs::new(y, rows),
    };
    match weight.format() {
        Format::F32 => product.run::<V, packed::F32>(v),
        Format::F16 => product.run::<V, packed::F16>(v),
        Format::Bf16 => product.run::<V, packed::Bf16>(v),
        Format::Q4_0 => product.run::<V, packed::Q4_0>(v),
        Format::Q4_1 => product.run::<V, packed::Q4_1>(v),
        Format::Q5_0 => product.run::<V, packed::Q5_0>(v),
        Format::Q5_1 => product.run::<V, packed::Q5_1>(v),
        Format::Q2K => product.run::<V, packed::Q2K>(v),
        Format::Q3K => product.run::<V, packed::Q3K>(v),
        Format::Q4K => product.run::<V, packed::Q4K>(v),
        Format::Q5K => product.run::<V, packed::Q5K>(v),
        Format::Q6K => product.run::<V, packed::Q6K>(v),
        Format::Iq4Nl => product.run::<V, packed::Iq4Nl>(v),
        Format::Q8_0 | Format::Int8(Block::B32) => product.run::<V, packed::Int8<1>>(v),
        Format::Int8(Block::B64) => product.run::<V, packed::Int8<2>>(v),
        Format::Int8(Block::B128) => product.run::<V, packed::Int8<4>>(v),
        Format::Int8(Block::B256) => product.run::<V, packed::Int8<8>>(v),
        Format::Nf4(Block::B32) => product.run::<V, packed::Codebook<1, false>>(v),
        Format::Nf4(Block::B64) => product.run::<V, packed::Codebook<2, false>>(v),
        Format::Nf4(Block::B128) => product.run::<V, packed::Codebook<4, false>>(v),
        Format::Nf4(Block::B256) => product.run::<V, packed::Codebook<8, false>>(v),
        Format::Sf4(Block::B32) => product.run::<V, packed::Codebook<1, true>>(v),
        Format::Sf4(Block::B64) => product.run::<V, packed::Codebook<2, true>>(v),
        Format::Sf4(Block::B128) => product.run::<V, packed::Codebook<4, true>>(v),
        Format::Sf4(Block::B256) => product.run::<V, packed::Codebook<8, true>>(v),
    }
}

/// A block that lies in cache lines of its own: a load of a whole register that crosses lines takes twice as long.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Aligned([f32; BLOCK]);

/// x in whole blocks.
enum Inputs<'a> {
    Borrowed(&'a [f32]),
    Copied(Vec<Aligned>),
}

impl<'a> Inputs<'a> {
    /// Padded with zeros where rows are ragged; copied too where enough rows of W meet it to make that worth while.
    fn new(x: &'a [f32], cols: usize, tokens: usize, rows: usize) -> Self {
        let ragged = !cols.is_multiple_of(BLOCK);
        if !ragged && (tokens < 8 || rows < 256) {
            return Self::Borrowed(x);
        }
        let width = cols.next_multiple_of(BLOCK);
        let mut copied = vec![Aligned([0.0; BLOCK]); tokens * width / BLOCK];
        let places = bytemuck::cast_slice_mut::<_, f32>(&mut copied).chunks_exact_mut(width);
        for (place, x) in places.zip(x.chunks_exact(cols)) {
            place[..cols].copy_from_slice(x);
        }
        Self::Copied(copied)
    }

    fn blocks(&self) -> &[[f32; BLOCK]] {
        match self {
            Self::Borrowed(x) => x.as_chunks().0,
            Self::Copied(x) => bytemuck::cast_slice(x),
        }
    }
}

/// One product.
struct Product<'a> {
    /// Tokens × blocks.
    x: &'a [[f32; BLOCK]],
    blocks: usize,
    tokens: usize,
    segments: Segments<'a>,
    y: Outputs<'a>,
}

/// The share of one thread.
struct Share<'a, F> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    format: PhantomData<F>,
}

impl Product<'_> {
    fn run<V: Vectors, F: Packed<V>>(&self, v: V) {
        let group = if self.few(V::TOKENS) { ROWS } else { PANEL };
        let work = self.blocks * BLOCK * self.tokens;
        by_share(self.y.rows(), group, work, |rows| {
            v.run(Share {
                product: self,
                rows,
                format: PhantomData::<F>,
            });
        });
    }

    /// Whether x stays in the first cache, so that four rows at a time can meet it.
    fn few(&self, tile: usize) -> bool {
        self.tokens <= 2 * tile
    }

    /// A segment of a token.
    #[inline(always)]
    fn x(&self, token: usize, segment: usize) -> &[[f32; BLOCK]] {
        let x = &self.x[token * self.blocks..(token + 1) * self.blocks];
        &x[segment * SEGMENT..self.blocks.min((segment + 1) * SEGMENT)]
    }
}

impl<V: Vectors, F: Packed<V>> Work<V> for Share<'_, F> {
    #[inline(always)]
    fn run(self, v: V) {
        if self.product.tokens == 1 {
            self.one_token(v);
        } else {
            self.tokens(v);
        }
    }
}

impl<F> Share<'_, F> {
    #[inline(always)]
    fn one_token<V: Vectors>(&self, v: V)
    where
        F: Packed<V>,
    {
        let product = self.product;
        for row in self.rows.clone().step_by(ROWS) {
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

    #[inline(always)]
    fn tokens<V: Vectors>(&self, v: V)
    where
        F: Packed<V>,
    {
        let product = self.product;
        let height = if product.few(V::TOKENS) { ROWS } else { PANEL };
        let length = product.blocks.min(SEGMENT);
        let mut panel = vec![Aligned([0.0; BLOCK]); height * length];
        let panel: &mut [[f32; BLOCK]] = bytemuck::cast_slice_mut(&mut panel);
        for first in self.rows.clone().step_by(height) {
            let last = self.rows.end.min(first + height);
            for segment in 0..product.segments.count() {
                let length = product.x(0, segment).len();
                for (row, out) in (first..last)
                    .step_by(ROWS)
                    .zip(panel.chunks_exact_mut(ROWS * length))
                {
                    for (bytes, out) in product
                        .segments
                        .of(row, segment)
                        .into_iter()
                        .zip(out.chunks_exact_mut(length))
                    {
                        kernel::expand::<V, F>(v, bytes, out);
                    }
                }
                // A function of its own: it is the same for every format.
                v.run(Panel {
                    product,
                    values: &panel[..(last - first).next_multiple_of(ROWS) * length],
                    row: first,
                    segment,
                });
            }
        }
    }
}

/// A segment of a row or of a token.
type Segment<'a> = &'a [[f32; BLOCK]];

/// A segment of some rows, expanded, that meets all tokens.
struct Panel<'a> {
    product: &'a Product<'a>,
    /// Rows × blocks.
    values: &'a [[f32; BLOCK]],
    /// The first.
    row: usize,
    segment: usize,
}

impl<V: Vectors> Work<V> for Panel<'_> {
    #[inline(always)]
    fn run(self, v: V) {
        let mut token = 0;
        while token < self.product.tokens {
            let left = self.product.tokens - token;
            token += match left.min(V::TOKENS) {
                1 => self.tiles(v, token, kernel::tile1),
                2 => self.tiles(v, token, kernel::tile2),
                3 => self.tiles(v, token, kernel::tile3),
                4 => self.tiles(v, token, kernel::tile4),
                5 => self.tiles(v, token, kernel::tile5),
                _ => self.tiles(v, token, kernel::tile6),
            };
        }
    }
}

impl Panel<'_> {
    /// Products of `T` tokens from `token` on, as `tile` makes them. Returns `T`.
    #[inline(always)]
    fn tiles<V: Vectors, const T: usize>(
        &self,
        v: V,
        token: usize,
        tile: impl Fn(V, [Segment<'_>; ROWS], [Segment<'_>; T]) -> [[f32; ROWS]; T],
    ) -> usize {
        let (product, segment) = (self.product, self.segment);
        let mut x = [product.x(token, segment); T];
        for (i, x) in x.iter_mut().enumerate() {
            *x = product.x(token + i, segment);
        }
        let length = x[0].len();
        for (group, w) in self.values.chunks_exact(ROWS * length).enumerate() {
            let w = [
                &w[..length],
                &w[length..2 * length],
                &w[2 * length..3 * length],
                &w[3 * length..],
            ];
            let sums = tile(v, w, x);
            for (i, sums) in sums.into_iter().enumerate() {
                let row = self.row + ROWS * group;
                // SAFETY: shares have different rows, of whole groups but for the last.
                unsafe { product.y.put(token + i, row, sums, segment > 0) };
            }
        }
        T
    }
}
