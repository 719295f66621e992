//! What products with cooperative matrices share, however W lies: which shapes the adapter can run, which it is given by
//! default, and the dispatches of one part of a matrix (`wgsl/matmul_coop.wgsl`).

use super::coop_tile::{
    CoopShape, CoopTile, EIGHTS, LARGE, LARGE_OF_FOUR, MEDIUM, SMALL, SMALL_PACKED, TINY, Tile,
};
use crate::{
    Error, GpuVector, Kernels, Result, View,
    gpu_weights::Chunk,
    kernels::{MOST_PARTIAL_SUMS, u32_of},
    ops::{HalfRows, linear::LinearParams},
    shaders,
};
use rwkv_gpu::Dispatch;

/// The value of the axis FORMAT of a matrix that lies by columns.
pub(super) const COLUMNS: &str = "columns";

/// Workgroups that a large GPU wants at least: one for each of 132 cores.
pub(super) const WORKGROUPS: usize = 132;
/// Columns that a slice has at least by default: fewer are not worth adding up.
const SLICE: usize = 256;
/// Threads of a subgroup.
const LANES: u32 = 32;
/// Threads of `wgsl/matmul_sum.wgsl`, four rows each.
pub(super) const SUM_THREADS: usize = 256;
/// Numbers of slices to choose from.
const SLICES: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

/// For up to so many tokens the tile of F16 by rows, F16 by columns, and packed weights, and how many workgroups of it
/// keep a core busy (H200, 2026-11): as many as its workgroup memory holds, some 60 KiB.
const DEFAULTS: [(usize, [(&Tile, usize); 3]); 5] = [
    (16, [(&TINY, 4), (&TINY, 4), (&SMALL_PACKED, 2)]),
    (32, [(&SMALL, 2), (&SMALL, 2), (&SMALL_PACKED, 2)]),
    (64, [(&MEDIUM, 2); 3]),
    (1023, [(&LARGE, 1); 3]),
    (
        usize::MAX,
        [(&LARGE_OF_FOUR, 1), (&LARGE_OF_FOUR, 1), (&LARGE, 1)],
    ),
];

/// A product as far as shapes depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoopOperands {
    /// The value of the kernel's axis FORMAT.
    pub(super) source: &'static str,
    pub(super) tokens: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Each part of the matrix but the last has a multiple of this many columns.
    pub(super) part: usize,
}

/// A product with one part of a matrix.
pub(super) struct CoopProduct<'a> {
    pub(super) source: &'static str,
    pub(super) halves: &'a HalfRows,
    pub(super) chunk: &'a Chunk,
    /// Of this part; `chunk` is not looked at.
    pub(super) params: LinearParams,
    /// What the kernel's addresses depend on, apart from x.
    pub(super) constants: Vec<(&'static str, f64)>,
    /// The constants of `wgsl/epilogue.wgsl`.
    pub(super) epilogue: Vec<(&'static str, f64)>,
    pub(super) bias: Option<&'a GpuVector>,
    pub(super) residual: Option<View<'a>>,
    pub(super) y: View<'a>,
}

impl CoopProduct<'_> {
    /// What addresses depend on, and whether a tile reaches past the matrix.
    fn constants(&self, tile: &Tile) -> Vec<(&'static str, f64)> {
        let (rows, cols) = (self.params.rows as usize, self.params.cols as usize);
        let x_stride = HalfRows::stride(self.halves.width()) / 4;
        let whole = rows.is_multiple_of(tile.rows) && cols.is_multiple_of(tile.depth);
        let mut constants = vec![
            ("CLIPPED", f64::from(u8::from(!whole))),
            ("X_STRIDE", x_stride as f64),
        ];
        constants.extend(&self.constants);
        constants
    }

    /// Columns of each of `slices`, in whole steps, and how many that makes.
    fn slice(&self, tile: &Tile, slices: usize) -> (usize, usize) {
        slice_of(self.params.cols as usize, tile, slices)
    }
}

/// Columns of each of `slices`, in whole steps, and how many that makes.
pub(super) fn slice_of(cols: usize, tile: &Tile, slices: usize) -> (usize, usize) {
    let slice = cols.div_ceil(slices);
    let slice = slice.next_multiple_of(tile.depth.max(64)).max(1);
    (slice, cols.div_ceil(slice))
}

impl Kernels {
    /// Whether products of many tokens run by cooperative matrices here, for weights but those in F32.
    pub fn has_coop(&self) -> bool {
        self.coop_side().is_some()
    }

    /// The sides of matrices that the adapter multiplies, 16 before 8; none where its subgroups have not 32 lanes.
    pub(super) fn coop_side(&self) -> Option<u32> {
        #[cfg(test)]
        if self.emulates.is_some() {
            return self.emulates;
        }
        let have = self.gpu().capabilities();
        let lanes = have.subgroups?;
        let has = |side: u32| {
            let mut all = have.cooperative_matrices.iter();
            have.f16 && all.any(|c| (c.m, c.n, c.k) == (side, side, side))
        };
        if has(16) && lanes.min == LANES && lanes.max == LANES {
            Some(16)
        } else if has(8) && (lanes.min..=lanes.max).contains(&LANES) {
            // Metal reports a range where all subgroups have 32.
            Some(8)
        } else {
            None
        }
    }

    /// The shapes that the adapter can run for a product; none where it has no cooperative matrices.
    pub(super) fn shapes_of(&self, of: &CoopOperands) -> Vec<CoopShape> {
        let Some(side) = self.coop_side() else {
            return Vec::new();
        };
        let limits = &self.gpu().capabilities().limits;
        let bytes = HalfRows::bytes(of.tokens, of.cols);
        let fits = bytes <= limits.binding_bytes.min(limits.buffer_bytes);
        if of.tokens == 0 || of.rows == 0 || of.cols == 0 || !fits {
            return Vec::new();
        }
        let mut shapes = Vec::new();
        for chosen in CoopTile::all() {
            let tile = chosen.spec();
            let can = |end: &str| {
                shaders::find(&kernel_name(of.source, tile, end, "one")).is_ok_and(|shader| {
                    let threads: u32 = shader.workgroup_size.iter().product();
                    shader.workgroup_bytes <= limits.workgroup_bytes
                        && threads <= limits.workgroup_invocations
                })
            };
            // A step past the end of a part would meet the next part's x.
            if tile.side != side || !of.part.is_multiple_of(tile.depth) {
                continue;
            }
            let (finishes, leaves_sums) = (can("finish"), can("sums"));
            let tiles = tile.count(of.tokens, of.rows);
            let most = of.cols.div_ceil(tile.depth);
            for slices in SLICES.into_iter().filter(|n| *n <= most) {
                let whole = slice_of(of.cols, tile, slices).1 == 1;
                if !(if whole { finishes } else { leaves_sums }) {
                    continue;
                }
                let sums = slices * tiles * tile.tokens * tile.rows;
                if slices > 1 && sums > MOST_PARTIAL_SUMS {
                    continue;
                }
                let tile = chosen;
                shapes.push(CoopShape { tile, slices });
            }
        }
        shapes
    }

    /// Of `shapes` the one for a product of which nothing was measured.
    pub(super) fn default_shape(
        &self,
        of: &CoopOperands,
        shapes: &[CoopShape],
    ) -> Option<CoopShape> {
        let (_, tiles) = DEFAULTS.iter().find(|(most, _)| of.tokens <= *most)?;
        let [rows, columns, packed] = *tiles;
        let of_tile = |(tile, busy): (&Tile, usize)| {
            let tiles = tile.count(of.tokens, of.rows);
            let shapes = shapes.iter().filter(|shape| shape.tile.spec() == tile);
            slices_for(shapes, tiles, of.cols, busy * WORKGROUPS)
        };
        let (tile, busy) = match (self.coop_side()?, of.source) {
            (8, _) => (&EIGHTS, 1),
            (_, "f16") => rows,
            (_, COLUMNS) => columns,
            _ => packed,
        };
        // With 32 KiB of workgroup memory, say, there are no larger tiles.
        let Some(chosen) = of_tile((tile, busy)) else {
            return of_tile((&MEDIUM, 2));
        };
        // Short slices of large tiles: the next smaller ones need fewer. And of few columns little is to be gained beside
        // the way in and out, which smaller tiles go side by side.
        let short = of.cols / chosen.slices < 2 * SLICE;
        if (tile.tokens, tile.rows) == (LARGE.tokens, LARGE.rows) && short {
            return of_tile((&MEDIUM, 2));
        }
        Some(chosen)
    }

    /// The dispatches of a product with one part of a matrix: one, or two where slices are added up apart.
    pub(super) fn coop_part(
        &self,
        op: &CoopProduct<'_>,
        shape: CoopShape,
    ) -> Result<Vec<Dispatch>> {
        let tile = shape.tile.spec();
        let (slice, slices) = op.slice(tile, shape.slices);
        let params = LinearParams {
            chunk: u32_of("columns", slice)?,
            ..op.params
        };
        let mut constants = op.constants(tile);
        constants.extend(tile.turns(op.params.cols as usize, slice));
        let end = if slices == 1 {
            constants.extend(&op.epilogue);
            "finish"
        } else {
            "sums"
        };
        let pipeline = self.pipeline(&kernel_name(op.source, tile, end, "one"), &constants)?;
        let (tokens, rows) = (
            (params.tokens as usize).next_multiple_of(tile.tokens),
            (params.rows as usize).next_multiple_of(tile.rows),
        );
        let ends = [
            op.halves.binding(),
            op.bias.map_or(self.unused(), GpuVector::binding),
            op.residual.as_ref().map_or(self.unused(), View::binding),
            op.y.binding(),
        ];
        let sums = match slices {
            1 => None,
            _ => Some(self.partials(slices * tokens * rows)?),
        };
        let mut product = match sums {
            None => self.dispatch(pipeline.clone(), &params, &ends, 1)?,
            Some(sums) => {
                self.dispatch(pipeline.clone(), &params, &[op.halves.binding(), sums], 1)?
            }
        };
        let tiles = (params.rows as usize).div_ceil(tile.rows);
        product.grid = self.coop_grid(params.tokens as usize, tiles, tile, slices)?;
        product.groups.push(op.chunk.group(self.gpu(), &pipeline)?);
        let Some(sums) = sums else {
            return Ok(vec![product]);
        };

        let pipeline = self.pipeline("matmul_sum", &op.epilogue)?;
        // As the kernel names them.
        let params = LinearParams {
            units: u32_of("rows", rows)?,
            base: u32_of("tokens", tokens)?,
            chunk: u32_of("slices", slices)?,
            ..params
        };
        let [x, bias, residual, y] = ends;
        let threads = (params.tokens as usize) * (params.rows as usize).div_ceil(4);
        let workgroups = threads.div_ceil(SUM_THREADS);
        let sum = self.dispatch(pipeline, &params, &[x, bias, residual, y, sums], workgroups)?;
        Ok(vec![product, sum])
    }

    /// The workgroups of tiles of tokens, tiles of rows and slices.
    pub(super) fn coop_grid(
        &self,
        tokens: usize,
        tiles: usize,
        tile: &Tile,
        slices: usize,
    ) -> Result<[u32; 3]> {
        let grid = [
            u32_of("tokens", tokens.div_ceil(tile.tokens))?,
            u32_of("rows", tiles)?,
            u32_of("slices", slices)?,
        ];
        let limit = self.gpu().capabilities().limits.workgroups;
        if grid.iter().any(|n| *n > limit) {
            let problem = format!(
                "{tokens} tokens by {tiles} tiles of rows pass the grid's limit; take fewer tokens at once"
            );
            return Err(Error::shape("product with cooperative matrices", problem));
        }
        Ok(grid)
    }
}

/// Of one tile's shapes the one with as many slices as `wanted` workgroups allow, if they are clearly fewer without: what
/// slices cost, storing sums and adding them up, is more than a third of the cores at rest (H200, 2026-11).
fn slices_for<'s>(
    shapes: impl Iterator<Item = &'s CoopShape>,
    tiles: usize,
    cols: usize,
    wanted: usize,
) -> Option<CoopShape> {
    let enough = tiles * 3 > wanted * 2;
    let fit = |slices: usize| slices * tiles <= wanted && slices * SLICE <= cols;
    let allowed = shapes.filter(|shape| shape.slices == 1 || !enough && fit(shape.slices));
    allowed.max_by_key(|shape| shape.slices).copied()
}

/// The variant that makes `tile` of W in `source`, and ends so.
/// `of`: "one" matrix, or the segments of a "stack".
pub(super) fn kernel_name(source: &str, tile: &Tile, end: &str, of: &str) -> String {
    format!("matmul_coop/{source}/{}/{end}/{of}", tile.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::ops::coop_tile::SMALL_DEEP;

    /// Slices only where workgroups are clearly fewer than cores, of 256 columns at least.
    #[test]
    fn slices() {
        #[track_caller]
        fn check(tile: &Tile, [tokens, rows, cols]: [usize; 3], cores: usize, want: usize) {
            let of_spec = CoopTile::all().find(|t| t.spec() == tile).unwrap();
            let shapes = SLICES.map(|slices| CoopShape {
                tile: of_spec,
                slices,
            });
            let wanted = cores * WORKGROUPS;
            let chosen = slices_for(shapes.iter(), tile.count(tokens, rows), cols, wanted).unwrap();
            assert_eq!(chosen.slices, want);
        }
        check(&LARGE, [2048, 4096, 4096], 1, 1);
        check(&LARGE, [512, 4096, 4096], 1, 1);
        check(&LARGE, [384, 4096, 4096], 1, 1);
        check(&LARGE, [256, 4096, 4096], 1, 2);
        check(&LARGE, [128, 4096, 4096], 1, 4);
        check(&LARGE, [128, 4096, 300], 1, 1);
        check(&MEDIUM, [64, 4096, 16384], 2, 4);
        check(&MEDIUM, [64, 16384, 4096], 2, 1);
        check(&SMALL_DEEP, [32, 4096, 4096], 1, 4);
        check(&SMALL_DEEP, [32, 16384, 4096], 1, 1);
        check(&SMALL_DEEP, [32, 2048, 2048], 1, 8);
        check(&SMALL, [32, 4096, 16384], 2, 8);
        check(&SMALL, [32, 2048, 8192], 2, 16);
        check(&SMALL, [32, 16384, 4096], 2, 2);
        check(&SMALL, [32, 65536, 4096], 2, 1);
        check(&TINY, [9, 1, 1], 4, 1);
        check(&TINY, [16, 4096, 4096], 4, 8);
        check(&TINY, [16, 16384, 4096], 4, 2);
    }
}
