//! Searches for the f16 scales, and offsets, of blocks that have no other.

#![allow(
    clippy::inline_always,
    reason = "searches are compiled for several sets of instructions, with all that is in them"
)]

use super::{
    grid::{Grid, Integers},
    lanes::{LANES, Lanes, below, keep, lanes, lay_side_by_side},
    search::{Groups, Sums, clean, codes, half},
};
use crate::simd::{Lookup, Search, Simd, search};

/// Which shares of the grid's reach the largest value is put at, to start from: below 1 the grid's end stays unused,
/// above 1 the largest value is cut.
pub(super) type Shares = [f32];

/// Starts of [`ScalesAndOffsets`] and of the nested search: how many [`CUT`]s of the range are left out below and above.
pub(super) const CUTS: [[f32; 2]; 9] = [
    [0.0, 0.0],
    [1.0, 1.0],
    [2.0, 2.0],
    [-1.0, -1.0],
    [0.0, 2.0],
    [2.0, 0.0],
    [-1.0, 1.0],
    [1.0, -1.0],
    [0.0, 4.0],
];

/// A share of the range.
pub(super) const CUT: f32 = 0.04;

/// How often [`Scales`] refits scale and codes to each other at most, from the most promising start. Three rounds from every
/// start took twice as long: of a trained model's values Q8_0 then lost 0.280 % instead of 0.282, NF4 in blocks of 256 6.71 %
/// instead of 6.66.
const ROUNDS: usize = 9;

/// Packs whole blocks of `N` values around zero, `x ≈ scale · q`, into `bytes` bytes each: finds the f16 scales, and
/// has `pack` make bytes of a block's clean values and its scale.
pub(super) fn with_scales<const N: usize>(
    values: &[f32],
    blocks: &mut [u8],
    bytes: usize,
    (grid, shares): (&impl Grid, &Shares),
    pack: impl Fn(&[f32; N], f32, &mut [u8]),
) {
    let (mut cleaned, mut rows) = ([[0.0; N]; LANES], [[0.0; LANES]; N]);
    let batches = blocks.chunks_mut(bytes * LANES);
    for (values, blocks) in values.as_chunks::<N>().0.chunks(LANES).zip(batches) {
        let values = clean_blocks(values, &mut cleaned);
        lay_side_by_side(values.as_flattened(), &mut rows);
        let mut scales = [0.0; LANES];
        let work = Scales {
            groups: Groups(&rows),
            grid,
            shares,
            best: &mut scales,
        };
        search(Simd::detect(), work);
        let blocks = blocks.chunks_exact_mut(bytes).zip(scales);
        for (values, (block, scale)) in values.iter().zip(blocks) {
            pack(values, scale, block);
        }
    }
}

/// The same of blocks of 32 values with an offset, `x ≈ offset + scale · q` with q from 0 to `top`: `pack` makes bytes of
/// codes, scale and offset.
pub(super) fn with_scales_and_offsets<const BYTES: usize>(
    values: &[f32],
    blocks: &mut [u8],
    top: f32,
    pack: impl Fn(&[u8; 32], f32, f32, &mut [u8; BYTES]),
) {
    let (mut cleaned, mut rows) = ([[0.0; 32]; LANES], [[0.0; LANES]; 32]);
    let batches = blocks.as_chunks_mut::<BYTES>().0.chunks_mut(LANES);
    for (values, blocks) in values.as_chunks::<32>().0.chunks(LANES).zip(batches) {
        let values = clean_blocks(values, &mut cleaned);
        lay_side_by_side(values.as_flattened(), &mut rows);
        let (mut scales, mut offsets) = ([0.0; LANES], [0.0; LANES]);
        let work = ScalesAndOffsets {
            groups: Groups(&rows),
            top,
            scales: &mut scales,
            offsets: &mut offsets,
        };
        search(Simd::detect(), work);
        let found = scales.into_iter().zip(offsets);
        for ((values, block), (scale, offset)) in values.iter().zip(blocks).zip(found) {
            let mut q = [0; 32];
            codes(
                &values.map(clean),
                Integers(0.0, top),
                scale,
                offset,
                &mut q,
            );
            pack(&q, scale, offset, block);
        }
    }
}

/// What encoders make of `values`.
fn clean_blocks<'a, const N: usize>(
    values: &[[f32; N]],
    cleaned: &'a mut [[f32; N]; LANES],
) -> &'a [[f32; N]] {
    let cleaned = &mut cleaned[..values.len()];
    for (cleaned, x) in cleaned
        .as_flattened_mut()
        .iter_mut()
        .zip(values.as_flattened())
    {
        *cleaned = clean(*x);
    }
    cleaned
}

/// The f16 scales of groups around zero.
struct Scales<'a, G> {
    groups: Groups<'a>,
    grid: &'a G,
    shares: &'a Shares,
    best: &'a mut Lanes,
}

impl<G: Grid> Search for Scales<'_, G> {
    #[inline(always)]
    fn run(self, v: impl Lookup) {
        let Self {
            groups,
            grid,
            shares,
            best,
        } = self;
        let extreme = groups.extreme();
        *best = [0.0; LANES];
        let mut least = groups.sums_around_zero(v, grid, best).rr;
        let mut least_next = [f32::INFINITY; LANES];
        let mut scale = [0.0; LANES];
        for end in grid.ends() {
            for share in shares {
                let start = lanes(|i| half(extreme[i] / (end * share)));
                let sums = groups.sums_around_zero(v, grid, &start);
                let better = below(&sums.rr, &least);
                keep(&mut least, &sums.rr, &better);
                keep(best, &start, &better);
                // The error with these codes and the f16 nearest to the scale that is best for them.
                let step = sums.scale_step();
                let next = lanes(|i| half(start[i] + step[i]));
                let step = lanes(|i| next[i] - start[i]);
                let error =
                    lanes(|i| sums.rr[i] + step[i] * (step[i] * sums.qq[i] - 2.0 * sums.rq[i]));
                let better = below(&error, &least_next);
                keep(&mut least_next, &error, &better);
                keep(&mut scale, &next, &better);
            }
        }
        for _ in 0..ROUNDS {
            let sums = groups.sums_around_zero(v, grid, &scale);
            let better = below(&sums.rr, &least);
            keep(&mut least, &sums.rr, &better);
            keep(best, &scale, &better);
            let step = sums.scale_step();
            let next = lanes(|i| half(scale[i] + step[i]));
            if next.map(f32::to_bits) == scale.map(f32::to_bits) {
                break;
            }
            scale = next;
        }
    }
}

/// The f16 scales and offsets of groups.
struct ScalesAndOffsets<'a> {
    groups: Groups<'a>,
    top: f32,
    scales: &'a mut Lanes,
    offsets: &'a mut Lanes,
}

impl Search for ScalesAndOffsets<'_> {
    #[inline(always)]
    fn run(self, v: impl Lookup) {
        let Self {
            groups,
            top,
            scales,
            offsets,
        } = self;
        let grid = Integers(0.0, top);
        let [low, high] = groups.ends();
        // Constant values: what the offset's rounding leaves is a scale's worth.
        let flat = lanes(|i| half(low[i]));
        (*scales, *offsets) = ([0.0; LANES], flat);
        let least = groups.sums(v, &grid, scales, &flat).rr;
        let mut best = Best {
            least,
            scales,
            offsets,
        };
        let scale = lanes(|i| half((low[i] - flat[i]) / top));
        best.take(&groups.sums(v, &grid, &scale, &flat), &scale, &flat);
        for [lower, upper] in CUTS {
            let cut = lanes(|i| (high[i] - low[i]) * CUT);
            let mut offset = lanes(|i| low[i] + lower * cut[i]);
            let mut scale = lanes(|i| (high[i] - upper * cut[i] - offset[i]) / top);
            for _ in 0..2 {
                let (ds, doff) = groups.sums(v, &grid, &scale, &offset).steps();
                scale = lanes(|i| scale[i] + ds[i]);
                offset = lanes(|i| offset[i] + doff[i]);
            }
            // One is rounded, and the other makes good for it.
            scale = lanes(|i| half(scale[i]));
            offset = lanes(|i| half(offset[i]));
            for _ in 0..3 {
                let sums = groups.sums(v, &grid, &scale, &offset);
                best.take(&sums, &scale, &offset);
                let (_, step) = sums.steps();
                let next = lanes(|i| half(offset[i] + step[i]));
                let step = sums.scale_step_beside(&lanes(|i| next[i] - offset[i]));
                scale = lanes(|i| half(scale[i] + step[i]));
                offset = next;
            }
        }
    }
}

/// What has had the smallest errors.
struct Best<'a> {
    least: Lanes,
    scales: &'a mut Lanes,
    offsets: &'a mut Lanes,
}

impl Best<'_> {
    #[inline(always)]
    fn take(&mut self, sums: &Sums, scale: &Lanes, offset: &Lanes) {
        let better = below(&sums.rr, &self.least);
        keep(&mut self.least, &sums.rr, &better);
        keep(self.scales, scale, &better);
        keep(self.offsets, offset, &better);
    }
}
