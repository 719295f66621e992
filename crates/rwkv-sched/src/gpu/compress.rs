//! Which matrices become compressed sparse rows on the GPU, and how they get there.

use super::resident::resident_format;
use crate::{
    Error, LoadOptions, Packing, Result, SparseWeights, Weight, Weights,
    sparse::{slab_rows, sparse_row_offsets},
};
use rwkv_gpu::Gpu;
use rwkv_kernels::{Csr, CsrUpload, Format, GpuCsr};
use rwkv_mem::Upload;

/// Where the compressed rows of a matrix come from.
pub(super) enum Compression {
    /// They lie in the file.
    Stored,
    /// A dense matrix, whose rows begin at these entries.
    Counted(Vec<u32>),
}

/// How `weight` becomes compressed sparse rows, or `None` for one that does not: it is none that can be pruned, it is
/// packed, or too many of its elements are not zero.
///
/// A few rows of a dense matrix are looked at; all of them, once, where those have zeros enough.
pub(super) fn choose(
    weights: &dyn Weights,
    weight: Weight,
    options: &LoadOptions,
) -> Result<Option<Compression>> {
    // What a sparse product sums first depends on the number of tokens.
    let choice = if options.deterministic {
        SparseWeights::Never
    } else {
        options.sparse
    };
    let Some(below) = choice.below(weight) else {
        return Ok(None);
    };
    let quantization = options.quantization.as_ref();
    let half = match quantization.and_then(|q| q.packing(weight)) {
        Some(packing) => packing == Packing::Format(Format::F16),
        None => resident_format(weights, weight, None, options.weights_dtype)? == Format::F16,
    };
    let (format, shape) = weights.describe(weight)?;
    if !half || !matches!(format, Format::F32 | Format::F16 | Format::Bf16) {
        return Ok(None);
    }
    if let Some(entries) = weights.entries(weight) {
        let elements = shape.rows.0 as f64 * shape.cols.0 as f64;
        return Ok(((entries as f64) < below * elements).then_some(Compression::Stored));
    }
    // To look for zeros in what is made anew each time costs as much as making it.
    if !weights.is_in_place(weight) {
        return Ok(None);
    }
    let offsets = sparse_row_offsets(weights, weight, below)?;
    Ok(offsets.map(Compression::Counted))
}

/// Uploads `weight` as compressed sparse rows; of a dense matrix, a slab of rows is on the host at a time.
pub(super) fn compress(
    gpu: &Gpu,
    weights: &dyn Weights,
    weight: Weight,
    how: &Compression,
    upload: &mut Upload,
) -> Result<GpuCsr> {
    let name = weights.name(weight);
    let offsets = match how {
        Compression::Stored => {
            let sparse = weights.sparse(weight)?.ok_or_else(|| Error::Weight {
                name: name.clone(),
                problem: "its sparse rows are missing".to_owned(),
            })?;
            return Ok(GpuCsr::new(gpu, &name, &sparse, upload)?);
        }
        Compression::Counted(offsets) => offsets,
    };
    let shape = weights.describe(weight)?.1;
    let (rows, slab) = (shape.rows.0, slab_rows(shape.cols.0));
    let wide = Csr::is_wide(shape.cols.0);
    let mut made = CsrUpload::new(gpu, &name, shape, offsets, wide, upload)?;
    for first in (0..rows).step_by(slab) {
        let some = first..rows.min(first + slab);
        weights.with_rows(weight, some, &mut |matrix| {
            let sparse = Csr::from_dense(&name, matrix, 0.0)?;
            Ok(made.push(&sparse, upload)?)
        })?;
    }
    Ok(made.finish()?)
}
