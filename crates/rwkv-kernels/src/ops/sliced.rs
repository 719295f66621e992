//! Sums that the slices of a product left apart, for a kernel that reads the product next and adds them up itself: a
//! dispatch less (`wgsl/norm_shift_halves.wgsl`, `wgsl/half_rows.wgsl`).

use super::coop_product::slice_of;
use crate::{
    Kernels, Result, View,
    kernels::u32_of,
    ops::{CoopShape, Function, HalfRows, Linear, SparseLinear},
};
use rwkv_gpu::Binding;

/// Where the slices of a product are, whose sums a reader adds up. They stay until the next product in
/// slices.
pub struct SlicedSum {
    pub(super) halves: HalfRows,
    words: usize,
    width: usize,
    pub(super) slices: u32,
    /// Units of four from one token to the next, and from one slice to the next.
    pub(super) pitch: u32,
    pub(super) slice: u32,
}

impl SlicedSum {
    fn new(
        halves: HalfRows,
        shape: CoopShape,
        [tokens, rows, cols]: [usize; 3],
    ) -> Result<Option<Self>> {
        let tile = shape.tile.spec();
        let (_, slices) = slice_of(cols, tile, shape.slices);
        if slices == 1 {
            return Ok(None);
        }
        let pitch = rows.next_multiple_of(tile.rows);
        let slice = tokens.next_multiple_of(tile.tokens) * pitch;
        Ok(Some(Self {
            halves,
            words: slices * slice,
            width: rows,
            slices: u32_of("slices", slices)?,
            pitch: u32_of("rows", pitch / 4)?,
            slice: u32_of("a slice", slice / 4)?,
        }))
    }

    /// Where they lie.
    pub(super) fn binding<'k>(&self, kernels: &'k Kernels) -> Result<Binding<'k>> {
        kernels.partials(self.words)
    }

    /// Elements of a row of the product.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The input of the product, whose rows have the power of two that the sums are to be multiplied by.
    pub fn halves(&self) -> &HalfRows {
        &self.halves
    }
}

/// A product in slices and what it is added to.
#[derive(Clone, Copy)]
pub struct Sliced<'a> {
    /// The product.
    pub sum: &'a SlicedSum,
    /// Where the sum with the residual goes: tokens × channels, not a buffer that is read.
    pub y: View<'a>,
}

impl Kernels {
    /// Where the slices of [`coop_linear`](Self::coop_linear) are, if its last dispatch does nothing but add them up and then
    /// the residual, or apply the function.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a size passes 32 bits.
    pub fn sliced_linear(
        &self,
        op: &Linear<'_>,
        halves: &HalfRows,
        shape: CoopShape,
    ) -> Result<Option<SlicedSum>> {
        let plain = op.bias.is_none()
            && (op.function == Function::Identity || op.residual.is_none())
            && op.weight.is_whole();
        if !plain {
            return Ok(None);
        }
        let sizes = [op.x.rows, op.y.width, op.x.width];
        SlicedSum::new(halves.clone(), shape, sizes)
    }

    /// The same of [`sparse_linear`](Self::sparse_linear), or with `halves` of [`coop_columns`](Self::coop_columns).
    ///
    /// # Errors
    /// Those of [`sliced_linear`](Self::sliced_linear), and of memory that does not suffice.
    pub fn sliced_columns(
        &self,
        op: &SparseLinear<'_>,
        halves: Option<&HalfRows>,
    ) -> Result<Option<SlicedSum>> {
        let plain = op.residual.is_some() && op.store.is_none() && op.weight.chunks().len() == 1;
        let Some(shape) = self.coop_column_shape(op).filter(|_| plain) else {
            return Ok(None);
        };
        let halves = if let Some(halves) = halves {
            halves.clone()
        } else {
            let buffer = self.shared_inputs(HalfRows::bytes(op.x.rows, op.x.width))?;
            HalfRows::within(buffer, op.x.rows, op.x.width)
        };
        SlicedSum::new(halves, shape, [op.x.rows, op.y.width, op.x.width])
    }
}
