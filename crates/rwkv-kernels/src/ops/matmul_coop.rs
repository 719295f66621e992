//! Matrix products of many tokens with cooperative matrices: f16 inputs, f32 sums (`wgsl/matmul_coop.wgsl`).
//!
//! x is rounded to f16 row by row ([`Kernels::half_rows`]), and weights are rounded to f16 from their values in f32, which
//! F16 weights pass as they are. So a sum is off by at most about 2^-11 `Σ |w x|` for F16 weights and 2^-10 for others,
//! where no weight is below f16's normal numbers (2^-14), from where on the error is at most 2^-25 a weight. A packed
//! weight above 65,504 becomes infinite.

use crate::{
    Error, GpuVector, Kernels, Result, View,
    gpu_weights::Chunk,
    kernels::{MOST_PARTIAL_SUMS, u32_of},
    ops::{
        HalfRows, Linear,
        linear::{LinearParams, check_linear, epilogue},
    },
    shaders,
    tuning::{Problem, Tunable},
};
use rwkv_gpu::Dispatch;
use serde::{Deserialize, Serialize};

/// A tile that a workgroup makes, as in `wgsl/coop/tiles/`.
#[derive(Debug, PartialEq, Eq)]
struct Tile {
    name: &'static str,
    /// Rows and columns of a matrix.
    side: u32,
    tokens: usize,
    rows: usize,
    /// Whether it is there for F16, and for packed formats.
    halves: bool,
    packed: bool,
}

const LARGE: Tile = Tile {
    name: "128x128x64-8",
    side: 16,
    tokens: 128,
    rows: 128,
    halves: true,
    packed: true,
};
const MEDIUM: Tile = Tile {
    name: "64x64x64-4",
    tokens: 64,
    rows: 64,
    ..LARGE
};
const SMALL: Tile = Tile {
    name: "32x128x64-4",
    tokens: 32,
    packed: false,
    ..LARGE
};
const SMALL_PACKED: Tile = Tile {
    name: "32x64x64-4",
    tokens: 32,
    rows: 64,
    halves: false,
    ..LARGE
};
const EIGHTS: Tile = Tile {
    name: "64x64x32-8x8",
    side: 8,
    ..MEDIUM
};

static TILES: [Tile; 5] = [LARGE, MEDIUM, SMALL, SMALL_PACKED, EIGHTS];

/// One of the tiles that the kernels make, by the name of its file in `wgsl/coop/tiles`: tokens, rows, columns of a step,
/// subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub struct CoopTile(usize);

impl CoopTile {
    fn spec(self) -> &'static Tile {
        TILES.get(self.0).unwrap_or(&TILES[0])
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..TILES.len()).map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Tokens and rows of a workgroup.
    pub fn size(self) -> (usize, usize) {
        (self.spec().tokens, self.spec().rows)
    }
}

impl From<CoopTile> for &'static str {
    fn from(tile: CoopTile) -> Self {
        tile.name()
    }
}

impl TryFrom<String> for CoopTile {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        let found = Self::all().find(|tile| tile.name() == name);
        found.ok_or_else(|| {
            Error::shape(
                "a tile of cooperative matrices",
                format!("there is no {name}"),
            )
        })
    }
}

/// How workgroups share a product with cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CoopShape {
    /// What a workgroup makes.
    pub tile: CoopTile,
    /// Parts that the columns are cut into, each for other workgroups; a further dispatch adds up their sums.
    pub slices: usize,
}

/// Columns of slices are multiples of this, which every tile's steps divide.
const WHOLE_COLUMNS: usize = 64;
/// Workgroups that a large GPU wants at least: one for each of 132 cores.
const WORKGROUPS: usize = 132;
/// Threads of a subgroup.
const LANES: u32 = 32;
/// Threads of `wgsl/matmul_sum.wgsl`, four rows each.
const SUM_THREADS: usize = 256;

impl CoopShape {
    /// What is worth timing.
    pub(crate) fn candidates() -> impl Iterator<Item = Self> {
        CoopTile::all().flat_map(|tile| [1, 2, 4, 8].map(|slices| Self { tile, slices }))
    }
}

impl Kernels {
    /// The sides of matrices that the adapter multiplies, 16 before 8; none where its subgroups have not 32 lanes.
    fn coop_side(&self) -> Option<u32> {
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

    /// The shapes that the adapter can run for `op`; none where it has no cooperative matrices, or for weights in F32.
    pub fn coop_shapes(&self, op: &Linear<'_>) -> Vec<CoopShape> {
        let Some(side) = self.coop_side() else {
            return Vec::new();
        };
        let limits = &self.gpu().capabilities().limits;
        let format = op.weight.layout().shader();
        let (tokens, rows, cols) = (op.x.rows, op.weight.shape().rows.0, op.x.width);
        let fits = HalfRows::bytes(tokens, cols) <= limits.binding_bytes.min(limits.buffer_bytes);
        if format == "f32" || tokens == 0 || rows == 0 || cols == 0 || !fits {
            return Vec::new();
        }
        let mut shapes = Vec::new();
        for chosen in CoopTile::all() {
            let tile = chosen.spec();
            let can = shaders::find(&name_of(format, tile, 1)).is_ok_and(|shader| {
                shader.workgroup_bytes <= limits.workgroup_bytes
                    && shader.workgroup_size.iter().product::<u32>() <= limits.workgroup_invocations
            });
            let there = if format == "f16" {
                tile.halves
            } else {
                tile.packed
            };
            if tile.side != side || !can || !there {
                continue;
            }
            let most = cols.div_ceil(WHOLE_COLUMNS);
            for slices in [1, 2, 4, 8, 16].into_iter().filter(|n| *n <= most) {
                let sums = slices
                    * tokens.next_multiple_of(tile.tokens)
                    * rows.next_multiple_of(tile.rows);
                if slices == 1 || sums <= MOST_PARTIAL_SUMS {
                    let tile = chosen;
                    shapes.push(CoopShape { tile, slices });
                }
            }
        }
        shapes
    }

    /// The shape that [`linear`](Self::linear) gives `op`, if it is for cooperative matrices at all.
    pub fn coop_shape(&self, op: &Linear<'_>) -> Option<CoopShape> {
        let shapes = self.coop_shapes(op);
        if shapes.is_empty() {
            return None;
        }
        let (tokens, rows) = (op.x.rows, op.weight.shape().rows.0);
        let tuned = self.coop_choice(Problem::of_matrix(Tunable::Matmul, op.weight, tokens));
        if let Some(tuned) = tuned.filter(|tuned| shapes.contains(tuned)) {
            return Some(tuned);
        }
        let tiles = |tile: &Tile| tokens.div_ceil(tile.tokens) * rows.div_ceil(tile.rows);
        // One of the largest is enough for a core.
        let (tile, wanted) = if self.coop_side() == Some(8) {
            (EIGHTS, WORKGROUPS)
        } else if tokens > MEDIUM.tokens {
            (LARGE, WORKGROUPS)
        } else if tokens > SMALL.tokens {
            (MEDIUM, 2 * WORKGROUPS)
        } else if op.weight.layout().shader() == "f16" {
            (SMALL, 2 * WORKGROUPS)
        } else {
            (SMALL_PACKED, 2 * WORKGROUPS)
        };
        let of_tile = shapes.iter().filter(|shape| *shape.tile.spec() == tile);
        of_tile
            .min_by_key(|shape| wanted.abs_diff(tiles(&tile) * shape.slices))
            .copied()
    }

    /// The dispatches of `op` with x rounded in `halves` already: one or two a part of the matrix. Its twin is
    /// [`matmul`](super::matmul), within what this file says of errors.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the adapter cannot run the shape, [`Error::Gpu`] when a kernel does
    /// not compile.
    pub fn coop_linear(
        &self,
        op: &Linear<'_>,
        halves: &HalfRows,
        shape: CoopShape,
    ) -> Result<Vec<Dispatch>> {
        check_linear(op)?;
        let tile = shape.tile.spec();
        let fits = (halves.rows(), halves.width()) == (op.x.rows, op.x.width);
        if !fits || !self.coop_shapes(op).contains(&shape) {
            return Err(Error::shape(
                "product with cooperative matrices",
                format!(
                    "{}×{} by a {} matrix of {} in {} slices of tiles {}; use `linear`",
                    halves.rows(),
                    halves.width(),
                    op.weight.shape(),
                    op.weight.format(),
                    shape.slices,
                    tile.name,
                ),
            ));
        }
        let mut dispatches = Vec::new();
        for chunk in op.weight.chunks() {
            if shape.slices == 1 {
                dispatches.push(self.coop_whole(op, halves, chunk, tile)?);
            } else {
                dispatches.extend(self.coop_slices(op, halves, chunk, tile, shape.slices)?);
            }
        }
        Ok(dispatches)
    }

    /// As [`coop_linear`](Self::coop_linear), rounding x first, into memory that all such products share.
    ///
    /// # Errors
    /// Those of [`coop_linear`](Self::coop_linear).
    pub fn coop_linear_rounding(&self, op: &Linear<'_>, shape: CoopShape) -> Result<Vec<Dispatch>> {
        let buffer = self.shared_halves(HalfRows::bytes(op.x.rows, op.x.width))?;
        let halves = HalfRows::within(buffer, op.x.rows, op.x.width);
        let mut dispatches = vec![self.half_rows(&op.x, &halves)?];
        dispatches.extend(self.coop_linear(op, &halves, shape)?);
        Ok(dispatches)
    }

    fn coop_whole(
        &self,
        op: &Linear<'_>,
        halves: &HalfRows,
        chunk: &Chunk,
        tile: &Tile,
    ) -> Result<Dispatch> {
        let layout = op.weight.layout();
        let mut constants = constants_of(op, chunk, tile);
        constants.extend(epilogue(op));
        let pipeline = self.pipeline(&name_of(layout.shader(), tile, 1), &constants)?;
        let params = params_of(op, chunk, op.x.width)?;
        let bindings = [
            halves.binding(),
            op.bias.map_or(self.unused(), GpuVector::binding),
            op.residual.as_ref().map_or(self.unused(), View::binding),
            op.y.binding(),
        ];
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, 1)?;
        dispatch.grid = self.coop_grid(op, chunk, tile, 1)?;
        dispatch.groups.push(chunk.group(self.gpu(), &pipeline)?);
        Ok(dispatch)
    }

    fn coop_slices(
        &self,
        op: &Linear<'_>,
        halves: &HalfRows,
        chunk: &Chunk,
        tile: &Tile,
        slices: usize,
    ) -> Result<[Dispatch; 2]> {
        let layout = op.weight.layout();
        let constants = constants_of(op, chunk, tile);
        let pipeline = self.pipeline(&name_of(layout.shader(), tile, slices), &constants)?;
        let slice = op.x.width.div_ceil(slices).next_multiple_of(WHOLE_COLUMNS);
        // Whole steps may need fewer.
        let slices = op.x.width.div_ceil(slice);
        let params = params_of(op, chunk, slice)?;
        let (tokens, rows) = (
            op.x.rows.next_multiple_of(tile.tokens),
            (chunk.rows as usize).next_multiple_of(tile.rows),
        );
        let sums = self.partials(slices * tokens * rows)?;
        let mut product = self.dispatch(pipeline.clone(), &params, &[halves.binding(), sums], 1)?;
        product.grid = self.coop_grid(op, chunk, tile, slices)?;
        product.groups.push(chunk.group(self.gpu(), &pipeline)?);

        let constants: Vec<_> = epilogue(op).collect();
        let pipeline = self.pipeline("matmul_sum", &constants)?;
        // As the kernel names them.
        let params = LinearParams {
            units: u32_of("rows", rows)?,
            base: u32_of("tokens", tokens)?,
            chunk: u32_of("slices", slices)?,
            ..params
        };
        let bindings = [
            halves.binding(),
            op.bias.map_or(self.unused(), GpuVector::binding),
            op.residual.as_ref().map_or(self.unused(), View::binding),
            op.y.binding(),
            sums,
        ];
        let threads = op.x.rows * (chunk.rows as usize).div_ceil(4);
        let sum = self.dispatch(pipeline, &params, &bindings, threads.div_ceil(SUM_THREADS))?;
        Ok([product, sum])
    }

    fn coop_grid(
        &self,
        op: &Linear<'_>,
        chunk: &Chunk,
        tile: &Tile,
        slices: usize,
    ) -> Result<[u32; 3]> {
        let grid = [
            u32_of("tokens", op.x.rows.div_ceil(tile.tokens))?,
            u32_of("rows", (chunk.rows as usize).div_ceil(tile.rows))?,
            u32_of("slices", slices)?,
        ];
        let limit = self.gpu().capabilities().limits.workgroups;
        if grid.iter().any(|n| *n > limit) {
            let problem = format!(
                "{} tokens by {} rows pass the grid's limit",
                op.x.rows, chunk.rows
            );
            return Err(Error::shape("linear", problem));
        }
        Ok(grid)
    }
}

/// What addresses depend on, and whether a tile reaches past the matrix.
fn constants_of(op: &Linear<'_>, chunk: &Chunk, tile: &Tile) -> Vec<(&'static str, f64)> {
    let whole =
        (chunk.rows as usize).is_multiple_of(tile.rows) && op.x.width.is_multiple_of(WHOLE_COLUMNS);
    let mut constants = vec![
        ("CLIPPED", f64::from(u8::from(!whole))),
        ("X_STRIDE", (HalfRows::stride(op.x.width) / 4) as f64),
        ("UNITS", op.weight.units() as f64),
    ];
    constants.extend(op.weight.layout().constants());
    constants
}

/// `slice`: the columns of a slice.
fn params_of(op: &Linear<'_>, chunk: &Chunk, slice: usize) -> Result<LinearParams> {
    let shape = op.weight.shape();
    Ok(LinearParams {
        rows: chunk.rows,
        first_row: chunk.first_row,
        cols: u32_of("columns", shape.cols.0)?,
        units: u32_of("units", op.weight.units())?,
        tokens: u32_of("tokens", op.x.rows)?,
        x_stride: u32_of("stride", HalfRows::stride(op.x.width) / 4)?,
        y_stride: u32_of("stride", View::stride(op.y.width))?,
        residual_stride: u32_of("stride", View::stride(shape.rows.0))?,
        base: chunk.base,
        chunk: u32_of("columns", slice)?,
    })
}

fn name_of(format: &str, tile: &Tile, slices: usize) -> String {
    let end = if slices == 1 { "finish" } else { "sums" };
    format!("matmul_coop/{format}/{}/{end}", tile.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// The tiles here and in the kernels are the same.
    #[test]
    fn tiles() {
        for tile in &TILES {
            for slices in [1, 2] {
                let all = [
                    ("f16", tile.halves),
                    ("q4_k", tile.packed),
                    ("int8", tile.packed),
                ];
                for (format, _) in all.into_iter().filter(|(_, there)| *there) {
                    let source = shaders::find(&name_of(format, tile, slices))
                        .unwrap()
                        .source;
                    for (name, value) in [
                        ("SIDE", tile.side as usize),
                        ("TOKENS", tile.tokens),
                        ("ROWS", tile.rows),
                    ] {
                        let line = format!("const {name}: u32 = {value};");
                        assert!(source.contains(&line), "{}: {line}", tile.name);
                    }
                }
            }
        }
    }
}
