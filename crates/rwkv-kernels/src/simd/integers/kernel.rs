//! The two inner loops: four rows with one token, and four expanded rows with a few tokens.

use super::{
    coded::Coded,
    instructions::{Head, Integers, PAIRS, STEPS, SUMS},
    rounded::{Halves, Wholes},
};
use crate::simd::kernel::{ROWS, each_row};
use bytemuck::Zeroable;

/// A block of weights as many tokens meet it.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Expanded {
    /// Codes times scales, of each step those of the even columns, then of the odd ones.
    pairs: [[[i16; PAIRS]; 2]; STEPS],
    /// `−dmin · minimum` of each group.
    minima: [f32; SUMS],
    /// d.
    scale: f32,
}

/// Products of a segment of each of four rows with that of one token.
#[inline(always)]
pub(super) fn dot<V: Integers, F: Coded<V>>(
    v: V,
    rows: [&[u8]; ROWS],
    x: &[Halves],
) -> [f32; ROWS] {
    let mut lanes = [v.zeros(); ROWS];
    for (block, x) in x.iter().enumerate() {
        let at = block * F::BYTES..(block + 1) * F::BYTES;
        let blocks = [
            &rows[0][at.clone()],
            &rows[1][at.clone()],
            &rows[2][at.clone()],
            &rows[3][at],
        ];
        let heads = F::heads(v, blocks, x.scale);
        each_row!(row => {
            lanes[row] = add_block::<V, F>(v, blocks[row], &heads[row], x, lanes[row]);
        });
    }
    v.sum4(lanes)
}

/// Adds the products of a block of a row.
#[inline(always)]
fn add_block<V: Integers, F: Coded<V>>(
    v: V,
    block: &[u8],
    head: &Head<V, F::Shared>,
    x: &Halves,
    lanes: V::Lanes,
) -> V::Lanes {
    let (mut high, mut low) = (v.zero(), v.zero());
    // A block has as many steps as there are rows.
    each_row!(step => {
        let [codes, scales] = F::step(v, block, &head.shared, step);
        let mut products = [v.pairs(codes, &x.high[step]), v.pairs(codes, &x.low[step])];
        if F::CENTRE > 0 {
            products[0] = v.minus(products[0], &x.high_pairs[step]);
            products[1] = v.minus(products[1], &x.low_pairs[step]);
        }
        high = v.add_pairs(products[0], scales, high);
        low = v.add_pairs(products[1], scales, low);
    });
    let lanes = v.add_scaled(v.join(high, low), head.scale, lanes);
    if F::MINIMA == 0 {
        return lanes;
    }
    v.add_products(head.minima, &x.sums, lanes)
}

/// Expands a segment of a row.
#[inline(always)]
pub(super) fn expand<V: Integers, F: Coded<V>>(v: V, row: &[u8], out: &mut [Expanded]) {
    for (block, out) in row.chunks_exact(F::BYTES).zip(out) {
        let shared = F::shared(v, block);
        each_row!(step => {
            let [codes, scales] = F::step(v, block, &shared, step);
            out.pairs[step] = v.products(codes, F::CENTRE, scales);
        });
        let [d, dmin] = F::factors(v, block);
        out.scale = d;
        if F::MINIMA > 0 {
            out.minima = v.minima(&F::minima(block), -dmin);
        }
    }
}

/// Products of four expanded segments with those of as many tokens as `x` has, each as long as the first.
macro_rules! tile {
    ($name:ident, $tokens:literal, $($token:literal)+) => {
        #[inline(always)]
        pub(super) fn $name<V: Integers, const MINIMA: bool>(
            v: V,
            w: [&[Expanded]; ROWS],
            x: [&[Wholes]; $tokens],
        ) -> [[f32; ROWS]; $tokens] {
            let n = w[0].len();
            let w = [&w[0][..n], &w[1][..n], &w[2][..n], &w[3][..n]];
            let x = [$(&x[$token][..n]),+];
            let mut lanes = [[v.zeros(); ROWS]; $tokens];
            for block in 0..n {
                let mut sums = [[v.zero(); ROWS]; $tokens];
                for step in 0..STEPS {
                    for part in 0..2 {
                        let w = [
                            v.load(&w[0][block].pairs[step][part]),
                            v.load(&w[1][block].pairs[step][part]),
                            v.load(&w[2][block].pairs[step][part]),
                            v.load(&w[3][block].pairs[step][part]),
                        ];
                        $(
                            let pairs = v.load(&x[$token][block].pairs[step][part]);
                            sums[$token][0] = v.add_pairs(w[0], pairs, sums[$token][0]);
                            sums[$token][1] = v.add_pairs(w[1], pairs, sums[$token][1]);
                            sums[$token][2] = v.add_pairs(w[2], pairs, sums[$token][2]);
                            sums[$token][3] = v.add_pairs(w[3], pairs, sums[$token][3]);
                        )+
                    }
                }
                $(
                    let rounded = &x[$token][block];
                    each_row!(row => {
                        let w = &w[row][block];
                        let sum = &mut lanes[$token][row];
                        let scale = v.splat(w.scale * rounded.scale);
                        *sum = v.add_scaled(sums[$token][row], scale, *sum);
                        if MINIMA {
                            *sum = v.add_products(v.lanes(&w.minima), &rounded.sums, *sum);
                        }
                    });
                )+
            }
            [$(v.sum4(lanes[$token])),+]
        }
    };
}

tile!(tile1, 1, 0);
tile!(tile2, 2, 0 1);
tile!(tile3, 3, 0 1 2);
tile!(tile4, 4, 0 1 2 3);
tile!(tile5, 5, 0 1 2 3 4);
tile!(tile6, 6, 0 1 2 3 4 5);
