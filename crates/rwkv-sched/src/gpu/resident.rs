//! A model's weights in GPU memory.

use crate::{
    Chosen, LoadOptions, LoadProgress, Model, Op, Result, Weight, Weights, WeightsDType,
    quantization::packed_bytes,
};
use rwkv_gpu::Gpu;
use rwkv_kernels::{Format, GpuMatrix, GpuVector};
use rwkv_mem::Upload;
use std::collections::HashMap;

/// Matrices and vectors by name; vectors that a kernel reads together lie one after the other.
pub(super) struct ResidentWeights {
    matrices: HashMap<Weight, GpuMatrix>,
    vectors: HashMap<Vec<Weight>, GpuVector>,
}

impl ResidentWeights {
    /// Uploads every tensor of `model`'s graph.
    pub(super) fn upload(
        model: &Model,
        gpu: &Gpu,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let weights = model.weights();
        if let Some(quantization) = &options.quantization {
            quantization.check(model.config().layers)?;
        }
        let mut total = 0;
        for weight in model.tensors() {
            total += packed_bytes(weights.describe(weight)?);
        }
        let mut upload = Upload::new(gpu);
        let (mut matrices, mut vectors) = (HashMap::new(), HashMap::new());
        let mut done = 0;
        for node in model.graph().nodes() {
            if let Some(weight) = node.op.matrix()
                && !matrices.contains_key(&weight)
            {
                let name = weights.name(weight);
                let chosen = match &options.quantization {
                    Some(quantization) => quantization.choose(weights, weight)?,
                    None => None,
                };
                let format = resident_format(weights, weight, chosen, options.weights_dtype)?;
                let (packed, shape) = weights.describe(weight)?;
                weights.with_rows(weight, 0..shape.rows.0, &mut |matrix| {
                    let mut load = |format| GpuMatrix::new(gpu, &name, matrix, format, &mut upload);
                    let resident = match load(format) {
                        Err(rwkv_kernels::Error::OutsideF16 { .. })
                            if options.weights_dtype == WeightsDType::Auto =>
                        {
                            load(Format::F32)?
                        }
                        other => other?,
                    };
                    matrices.insert(weight, resident);
                    Ok(())
                })?;
                done += packed_bytes((packed, shape));
            }
            for group in vector_groups(&node.op) {
                if vectors.contains_key(&group) {
                    continue;
                }
                let mut values = Vec::new();
                for &weight in &group {
                    let matrix = weights.matrix(weight)?;
                    values.extend(weights.vector(weight, matrix.shape().elements().unwrap_or(0))?);
                    done += matrix.bytes().len() as u64;
                }
                let name = group.first().map(|w| weights.name(*w)).unwrap_or_default();
                vectors.insert(group, GpuVector::new(gpu, &name, &values, &mut upload)?);
            }
            progress(LoadProgress {
                done: done.min(total),
                total,
            });
        }
        upload.flush()?;
        Ok(Self { matrices, vectors })
    }

    pub(super) fn matrix(&self, weight: Weight) -> Option<&GpuMatrix> {
        self.matrices.get(&weight)
    }

    /// The vectors `group`, one after the other.
    pub(super) fn vectors(&self, group: &[Weight]) -> Option<&GpuVector> {
        self.vectors.get(group)
    }

    pub(super) fn bytes(&self) -> u64 {
        let matrices: u64 = self.matrices.values().map(GpuMatrix::bytes).sum();
        let vectors: u64 = self.vectors.values().map(GpuVector::bytes).sum();
        matrices + vectors
    }
}

/// The vectors of an operation, as its kernel binds them.
pub(super) fn vector_groups(op: &Op) -> Vec<Vec<Weight>> {
    match op {
        Op::TokenShift { mixes, .. } => vec![mixes.clone()],
        other => other.vectors().into_iter().map(|w| vec![w]).collect(),
    }
}

/// The format on the GPU of a matrix: what a quantization has chosen, else as in its file, but for F32 and BF16.
pub(super) fn resident_format(
    weights: &dyn Weights,
    weight: Weight,
    chosen: Option<Chosen>,
    dtype: WeightsDType,
) -> Result<Format> {
    if let Some(chosen) = chosen {
        return Ok(chosen.format);
    }
    Ok(match (weights.describe(weight)?.0, dtype) {
        (Format::F32 | Format::Bf16, WeightsDType::F32) => Format::F32,
        (Format::F32 | Format::Bf16, WeightsDType::F16 | WeightsDType::Auto) => Format::F16,
        (other, _) => other,
    })
}
