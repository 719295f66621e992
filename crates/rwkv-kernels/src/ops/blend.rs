//! A weight with what adapters change of it: `y = keep · W + B A + T`.
//!
//! One low-rank change is `B A` with its strength in B; several are one whose ranks are added up. A whole tensor T that
//! W moves towards by a strength s is `keep = 1 − s` and `s · T`.

use crate::{Error, Format, GpuMatrix, Kernels, Matrix, Result, View, kernels::u32_of};
use bytemuck::NoUninit;
use rayon::prelude::*;
use rwkv_gpu::{Binding, Buffer, Dispatch};

/// What becomes of some rows of a matrix of `cols` columns, on the host.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What is left of the weight; 0 leaves nothing, whatever it was.
    pub keep: f32,
    /// `[rank, cols]`.
    pub a: &'a [f32],
    /// `[rows, rank]`, of the rows that are made.
    pub b: &'a [f32],
    /// `[rows, cols]`, of the rows that are made, or empty.
    pub whole: &'a [f32],
}

/// The twin: rows `first ..` of the blended matrix, as many as `y` holds.
///
/// # Errors
/// [`Error::Shape`] when the sizes do not fit.
pub fn blend(base: &Matrix<'_>, first: usize, change: &Change<'_>, y: &mut [f32]) -> Result<()> {
    let (total, cols) = (base.shape().rows.0, base.shape().cols.0);
    let rows = y.len() / cols.max(1);
    let rank = change.a.len() / cols.max(1);
    let fits = y.len() == rows * cols
        && change.a.len() == rank * cols
        && change.b.len() == rows * rank
        && (change.whole.is_empty() || change.whole.len() == y.len())
        && first.checked_add(rows).is_some_and(|end| end <= total);
    if !fits {
        return Err(Error::shape(
            "blend",
            format!(
                "{} elements from row {first} of a {} matrix, by {} and {} of rank {rank}, and {}",
                y.len(),
                base.shape(),
                change.a.len(),
                change.b.len(),
                change.whole.len()
            ),
        ));
    }
    if y.is_empty() {
        return Ok(());
    }
    y.par_chunks_exact_mut(cols)
        .enumerate()
        .for_each(|(row, y)| {
            base.expand_row(first + row, y);
            for y in y.iter_mut() {
                *y = if change.keep == 0.0 {
                    0.0
                } else {
                    change.keep * *y
                };
            }
            let factors = change.b.get(row * rank..).unwrap_or_default();
            for (factor, a) in factors.iter().zip(change.a.chunks_exact(cols)) {
                for (y, a) in y.iter_mut().zip(a) {
                    *y += factor * a;
                }
            }
            let whole = change.whole.get(row * cols..).unwrap_or_default();
            for (y, t) in y.iter_mut().zip(whole) {
                *y += t;
            }
        });
    Ok(())
}

/// Some rows of a blended matrix, made on the GPU.
pub struct Blend<'a> {
    /// W.
    pub base: &'a GpuMatrix,
    /// The first of the rows.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// What is left of W.
    pub keep: f32,
    /// A, rank × columns, if there is a low-rank change.
    pub a: Option<View<'a>>,
    /// What each row that is made has of its own, if anything: its row of B, which ends at [`View::stride`] of the rank,
    /// then its row of T. One buffer, since every kernel runs with the 8 that WebGPU guarantees.
    pub own: Option<View<'a>>,
    /// Whether there is a T.
    pub whole: bool,
    /// The largest finite magnitude of what is written goes to element `.1` of this buffer of u32 (as its bits), if it
    /// is larger than what is there.
    pub largest: (&'a Buffer, usize),
    /// Where the rows go: F16 or F32, in the shape of `base`.
    pub y: &'a GpuMatrix,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    rows: u32,
    w_row: u32,
    y_row: u32,
    own_row: u32,
    cols: u32,
    units: u32,
    rank: u32,
    a_stride: u32,
    own_stride: u32,
    y_stride: u32,
    t_first: u32,
    index: u32,
    keep: f32,
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 64;

impl Blend<'_> {
    /// Elements of a row of [`Blend::own`], for a change of this rank of a matrix of `cols` columns.
    pub fn own_width(rank: usize, cols: usize, whole: bool) -> usize {
        View::stride(rank).saturating_add(if whole { cols } else { 0 })
    }
}

impl Kernels {
    /// The dispatches of `op`: one for each two parts of base and result that have rows in common.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn blend(&self, op: &Blend<'_>) -> Result<Vec<Dispatch>> {
        let shape = op.base.shape();
        let cols = shape.cols.0;
        let rank = op.a.map_or(0, |a| a.rows);
        let own_width = Blend::own_width(rank, cols, op.whole);
        let fits = op.a.is_none_or(|a| a.width == cols)
            && match op.own {
                None => own_width == 0,
                Some(own) => own.width == own_width && own.rows == op.rows,
            }
            && op.y.shape() == shape
            && op
                .first
                .checked_add(op.rows)
                .is_some_and(|end| end <= shape.rows.0)
            && op.largest.0.size() >= (op.largest.1 as u64 + 1) * 4;
        if !fits {
            return Err(Error::shape(
                "blend",
                format!(
                    "{} rows from {} of a {shape} matrix by a pair of rank {rank} into {}",
                    op.rows,
                    op.first,
                    op.y.shape()
                ),
            ));
        }
        let element = match op.y.format() {
            Format::F16 => 2,
            Format::F32 => 4,
            other => {
                let problem = format!("a blend is F16 or F32, not {other}");
                return Err(Error::shape("blend", problem));
            }
        };
        let layout = op.base.layout();
        let name = format!("blend/{}/{}", layout.shader(), op.y.format());
        let mut constants = vec![("HAS_WHOLE", f64::from(u8::from(op.whole)))];
        constants.extend(layout.constants());
        let pipeline = self.pipeline(&name, &constants)?;
        let units = op.base.units();
        let mut dispatches = Vec::new();
        for base in op.base.chunks() {
            for y in op.y.chunks() {
                let start = op.first.max(base.first()).max(y.first());
                let end = (op.first + op.rows).min(base.end()).min(y.end());
                let Some(rows) = end.checked_sub(start).filter(|n| *n > 0) else {
                    continue;
                };
                let Some(part) = y.bindings().next() else {
                    continue;
                };
                let params = Params {
                    rows: u32_of("rows", rows)?,
                    w_row: base.base + u32_of("rows", start - base.first())?,
                    y_row: y.base + u32_of("rows", start - y.first())?,
                    own_row: u32_of("rows", start - op.first)?,
                    cols: u32_of("columns", cols)?,
                    units: u32_of("units", units)?,
                    rank: u32_of("rank", rank)?,
                    a_stride: u32_of("stride", View::stride(cols) / 4)?,
                    own_stride: u32_of("stride", View::stride(own_width) / 4)?,
                    // Rows of both formats are padded to 16 bytes.
                    y_stride: u32_of(
                        "stride",
                        (cols * element).next_multiple_of(16) / (4 * element),
                    )?,
                    t_first: u32_of("stride", View::stride(rank) / 4)?,
                    index: u32_of("index", op.largest.1)?,
                    keep: op.keep,
                };
                let bindings = [
                    op.a.as_ref().map_or(self.unused(), View::binding),
                    op.own.as_ref().map_or(self.unused(), View::binding),
                    Binding::from(op.largest.0),
                    part,
                ];
                let threads = rows.checked_mul(units);
                u32_of("elements", threads.unwrap_or(usize::MAX))?;
                let workgroups = threads.unwrap_or(usize::MAX).div_ceil(THREADS);
                let mut dispatch =
                    self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
                dispatch.groups.push(base.group(self.gpu(), &pipeline)?);
                dispatches.push(dispatch);
            }
        }
        Ok(dispatches)
    }
}
