//! The two inner loops of a product: four rows with one token, expanded in registers, and four expanded rows with a few
//! tokens.
//!
//! Both add the same terms in the same order: lane by lane along a segment of columns, and then the lanes. So a sum has
//! the same bits whichever of them makes it, and however many tokens there are.

use super::{
    packed::Packed,
    vectors::{BLOCK, Vectors},
};

/// Rows that share what is loaded of x.
pub(super) const ROWS: usize = 4;

/// `$body` for each of [`ROWS`] rows, written out: arrays that are indexed with it are registers whatever the compiler
/// unrolls.
macro_rules! each_row {
    ($row:ident => $body:block) => {
        let $row = 0;
        $body
        let $row = 1;
        $body
        let $row = 2;
        $body
        let $row = 3;
        $body
    };
}
pub(super) use each_row;

/// `$body` for each step of a unit of `$format`; four of them written out, so that shifts are constants.
macro_rules! each_step {
    ($format:ident, $step:ident => $body:block) => {
        if $format::BLOCKS / $format::STEP == 4 {
            each_row!($step => $body);
        } else {
            for $step in 0..$format::BLOCKS / $format::STEP $body
        }
    };
}

/// The block of zeros that the end of a row is padded with, as large as that of the widest format with ragged rows.
const PADDING: usize = 4 * BLOCK;

/// The rest of a row of floats, shorter than a block, and zeros.
#[inline(always)]
fn padded(rest: &[u8]) -> [u8; PADDING] {
    let mut unit = [0; PADDING];
    let n = rest.len().min(PADDING);
    unit[..n].copy_from_slice(&rest[..n]);
    unit
}

/// Products of a segment of each row of `rows` with that of one token.
#[inline(always)]
pub(super) fn dot<V: Vectors, F: Packed<V>>(
    v: V,
    rows: [&[u8]; ROWS],
    x: &[[f32; BLOCK]],
) -> [f32; ROWS] {
    let mut sums = [v.zero(); ROWS];
    let units = rows[0].len() / F::BYTES;
    let mut rest = x;
    for unit in 0..units {
        let Some((x, after)) = rest.split_at_checked(F::BLOCKS) else {
            break;
        };
        rest = after;
        let at = unit * F::BYTES..(unit + 1) * F::BYTES;
        let units = [
            &rows[0][at.clone()],
            &rows[1][at.clone()],
            &rows[2][at.clone()],
            &rows[3][at],
        ];
        let shared = F::shared4(v, units);
        each_step!(F, step => {
            each_row!(row => {
                let [first, last] = F::values(v, units[row], &shared[row], step);
                sums[row] = v.add_products(first, &x[F::STEP * step], sums[row]);
                if F::STEP == 2 {
                    sums[row] = v.add_products(last, &x[F::STEP * step + 1], sums[row]);
                }
            });
        });
    }
    if let Some(x) = rest.first().filter(|_| F::BYTES <= PADDING) {
        for row in 0..ROWS {
            let unit = padded(&rows[row][units * F::BYTES..]);
            let [values, _] = F::values(v, &unit, &F::shared(v, &unit), 0);
            sums[row] = v.add_products(values, x, sums[row]);
        }
    }
    v.sum4(sums)
}

/// Expands a segment of a row; what `out` has more than the row becomes zeros.
#[inline(always)]
pub(super) fn expand<V: Vectors, F: Packed<V>>(v: V, row: &[u8], out: &mut [[f32; BLOCK]]) {
    let units = row.chunks_exact(F::BYTES);
    let rest = units.remainder();
    let mut blocks = out.chunks_exact_mut(F::BLOCKS);
    for (unit, blocks) in units.zip(&mut blocks) {
        let shared = F::shared(v, unit);
        each_step!(F, step => {
            let [first, last] = F::values(v, unit, &shared, step);
            v.store(first, &mut blocks[F::STEP * step]);
            if F::STEP == 2 {
                v.store(last, &mut blocks[F::STEP * step + 1]);
            }
        });
    }
    if let Some([block]) = blocks.next().filter(|_| F::BYTES <= PADDING) {
        let unit = padded(rest);
        let [values, _] = F::values(v, &unit, &F::shared(v, &unit), 0);
        v.store(values, block);
    }
}

/// Products of four expanded segments with those of as many tokens as `x` has, each as long as the first. Written out,
/// so that the sums are registers whatever the compiler unrolls.
macro_rules! tile {
    ($name:ident, $tokens:literal, $($token:literal)+) => {
        #[inline(always)]
        pub(super) fn $name<V: Vectors>(
            v: V,
            w: [&[[f32; BLOCK]]; ROWS],
            x: [&[[f32; BLOCK]]; $tokens],
        ) -> [[f32; ROWS]; $tokens] {
            let n = w[0].len();
            let w = [&w[0][..n], &w[1][..n], &w[2][..n], &w[3][..n]];
            let x = [$(&x[$token][..n]),+];
            let mut sums = [[v.zero(); ROWS]; $tokens];
            for block in 0..n {
                for register in 0..V::REGISTERS {
                    let w = [
                        v.lanes(&w[0][block], register),
                        v.lanes(&w[1][block], register),
                        v.lanes(&w[2][block], register),
                        v.lanes(&w[3][block], register),
                    ];
                    $(
                        let lanes = v.lanes(&x[$token][block], register);
                        sums[$token][0] = v.multiply_add(w[0], lanes, sums[$token][0]);
                        sums[$token][1] = v.multiply_add(w[1], lanes, sums[$token][1]);
                        sums[$token][2] = v.multiply_add(w[2], lanes, sums[$token][2]);
                        sums[$token][3] = v.multiply_add(w[3], lanes, sums[$token][3]);
                    )+
                }
            }
            [$(v.sum4(sums[$token])),+]
        }
    };
}

tile!(tile1, 1, 0);
tile!(tile2, 2, 0 1);
tile!(tile3, 3, 0 1 2);
tile!(tile4, 4, 0 1 2 3);
tile!(tile5, 5, 0 1 2 3 4);
tile!(tile6, 6, 0 1 2 3 4 5);
