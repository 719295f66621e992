//! Matrices that a file has as compressed sparse rows.

use crate::files::CsrView;
use half::f16;
use rayon::prelude::*;
use rwkv_kernels::{Csr, CsrColumns};
use rwkv_mem::Shape;
use std::{borrow::Cow, sync::OnceLock};

/// What is known of a sparse matrix once its parts were looked at: a copy where they are not aligned.
#[derive(Default)]
pub(super) struct Checked(OnceLock<Option<Box<Csr<'static>>>>);

impl Checked {
    /// The matrix `name` whose parts are `view`, in the file where they are aligned there. All of it is looked at the
    /// first time.
    pub(super) fn matrix<'a>(
        &'a self,
        name: &str,
        shape: Shape,
        view: CsrView<'a>,
    ) -> Result<Csr<'a>, rwkv_kernels::Error> {
        if let Some(copy) = self.0.get() {
            return Ok(match copy {
                Some(copy) => copy.lend(),
                None => accepted(shape, view),
            });
        }
        let (values, columns, row_offsets) = parts(view);
        let copied = matches!(values, Cow::Owned(_))
            || matches!(row_offsets, Cow::Owned(_))
            || matches!(
                columns,
                CsrColumns::U16(Cow::Owned(_)) | CsrColumns::U32(Cow::Owned(_))
            );
        let matrix = Csr::new(name, shape.rows, shape.cols, values, columns, row_offsets)?;
        if copied {
            let copy = self.0.get_or_init(|| Some(Box::new(matrix.into_owned())));
            return Ok(match copy {
                Some(copy) => copy.lend(),
                None => accepted(shape, view),
            });
        }
        self.0.get_or_init(|| None);
        Ok(matrix)
    }
}

fn accepted(shape: Shape, view: CsrView<'_>) -> Csr<'_> {
    let (values, columns, row_offsets) = parts(view);
    Csr::accepted(shape, values, columns, row_offsets)
}

/// Values, columns and row offsets.
type Parts<'a> = (Cow<'a, [f16]>, CsrColumns<'a>, Cow<'a, [u32]>);

fn parts(view: CsrView<'_>) -> Parts<'_> {
    let columns = match view.column_bytes {
        2 => CsrColumns::U16(numbers(view.columns, u16::from_le_bytes)),
        _ => CsrColumns::U32(numbers(view.columns, u32::from_le_bytes)),
    };
    (
        numbers(view.values, f16::from_le_bytes),
        columns,
        numbers(view.row_offsets, u32::from_le_bytes),
    )
}

/// The numbers in `bytes`, little endian: where they are, if they can be read there.
fn numbers<T: bytemuck::AnyBitPattern, const N: usize>(
    bytes: &[u8],
    read: fn([u8; N]) -> T,
) -> Cow<'_, [T]> {
    if cfg!(target_endian = "little")
        && let Ok(numbers) = bytemuck::try_cast_slice(bytes)
    {
        return Cow::Borrowed(numbers);
    }
    bytes.as_chunks().0.iter().map(|b| read(*b)).collect()
}

/// Rows `first ..` of `matrix`, expanded to F16 into `out`, which was zeros.
pub(super) fn expand(matrix: &Csr<'_>, first: usize, out: &mut [u8]) {
    let row_bytes = matrix.shape().cols.0.saturating_mul(2).max(1);
    out.par_chunks_exact_mut(row_bytes)
        .enumerate()
        .for_each(|(row, out)| {
            let places = out.as_chunks_mut().0;
            for (column, value) in matrix.row(first + row) {
                if let Some(place) = places.get_mut(column) {
                    *place = f16::from_f32(value).to_le_bytes();
                }
            }
        });
}
