//! Blends on the GPU: the changed matrices and vectors in device memory, made from the resident ones.

use super::resident::{ResidentWeights, WeightStack};
use crate::{
    Model, Result, Weight, WeightsDType,
    adapter::{Blender, Held, Recipe},
};
use rwkv_gpu::{Buffer, BufferKind, Readback};
use rwkv_kernels::{
    Format, GpuColumns, GpuCsr, GpuMatrix, GpuVector, Kernels, View, formats::F16_MAX, ops::Blend,
};
use rwkv_mem::{Pool, Pooled, Upload};
use std::collections::HashMap;

/// What a blend changes.
#[derive(Default)]
pub(super) struct GpuBlend {
    matrices: HashMap<Weight, GpuMatrix>,
    vectors: HashMap<Vec<Weight>, GpuVector>,
}

impl Held for GpuBlend {
    fn bytes(&self) -> u64 {
        let matrices: u64 = self.matrices.values().map(GpuMatrix::bytes).sum();
        let vectors: u64 = self.vectors.values().map(GpuVector::bytes).sum();
        matrices + vectors
    }
}

/// What there is of one.
pub(super) struct PartialBlend {
    blend: GpuBlend,
    /// The weights of the whole blend, in the order of `largest`.
    weights: Vec<Weight>,
    /// The largest magnitude of each matrix, as the bits of an f32.
    largest: Buffer,
    upload: Upload,
}

impl Held for PartialBlend {
    fn bytes(&self) -> u64 {
        self.blend.bytes() + self.largest.size()
    }
}

/// The weights that plans are made of: a blend's where it has them, else the base model's.
#[derive(Clone, Copy)]
pub(super) struct ActiveWeights<'a> {
    pub(super) base: &'a ResidentWeights,
    pub(super) blend: Option<&'a GpuBlend>,
}

impl<'a> ActiveWeights<'a> {
    pub(super) fn matrix(&self, weight: Weight) -> Option<&'a GpuMatrix> {
        let blended = self.blend.and_then(|b| b.matrices.get(&weight));
        blended.or_else(|| self.base.matrix(weight))
    }

    /// A matrix that lies input by input, unless it is blended.
    pub(super) fn columns(&self, weight: Weight) -> Option<&'a GpuColumns> {
        self.base
            .columns(weight)
            .filter(|_| !self.is_blended(weight))
    }

    /// A matrix that lies as compressed sparse rows, unless it is blended.
    pub(super) fn sparse(&self, weight: Weight) -> Option<&'a GpuCsr> {
        self.base
            .sparse(weight)
            .filter(|_| !self.is_blended(weight))
    }

    /// The base model's stack that `weight` is in.
    pub(super) fn stack(&self, weight: Weight) -> Option<&'a WeightStack> {
        self.base.stack(weight)
    }

    /// Whether a matrix is not the base model's.
    pub(super) fn is_blended(&self, weight: Weight) -> bool {
        self.blend.is_some_and(|b| b.matrices.contains_key(&weight))
    }

    /// The vectors `group`, one after the other.
    pub(super) fn vectors(&self, group: &[Weight]) -> Option<&'a GpuVector> {
        let blended = self.blend.and_then(|b| b.vectors.get(group));
        blended.or_else(|| self.base.vectors(group))
    }
}

/// Makes blends of the resident weights of `model`.
pub(super) struct GpuBlender<'a> {
    pub(super) model: &'a Model,
    pub(super) kernels: &'a Kernels,
    pub(super) pool: &'a Pool,
    pub(super) weights: &'a ResidentWeights,
    pub(super) dtype: WeightsDType,
}

/// Bytes of B and T that are on the GPU at a time.
const SLAB: usize = 8 << 20;

impl Blender for GpuBlender<'_> {
    type Partial = PartialBlend;
    type Blend = GpuBlend;

    fn model(&self) -> &Model {
        self.model
    }

    fn start(&self, weights: &[Weight]) -> Result<PartialBlend> {
        let gpu = self.kernels.gpu();
        let bytes = (weights.len() * 4) as u64;
        Ok(PartialBlend {
            blend: GpuBlend::default(),
            weights: weights.to_vec(),
            largest: gpu.buffer(BufferKind::Storage, "largest of a blend", bytes)?,
            upload: Upload::new(gpu),
        })
    }

    fn blend(&self, recipe: &Recipe, weight: Weight, partial: &mut PartialBlend) -> Result<()> {
        if let Some(base) = self.base(weight, &mut partial.upload)? {
            let format = match base.format() {
                Format::F32 => Format::F32,
                _ => Format::F16,
            };
            let matrix = self.matrix(recipe, weight, &base, format, partial)?;
            partial.blend.matrices.insert(weight, matrix);
        }
        for group in self.weights.vector_groups() {
            if !group.contains(&weight) || partial.blend.vectors.contains_key(group) {
                continue;
            }
            let mut values = Vec::new();
            for &part in group {
                values.extend(recipe.vector(self.model, part)?);
            }
            let (gpu, name) = (self.kernels.gpu(), self.model.weights().name(weight));
            let vector = GpuVector::new(gpu, &name, &values, &mut partial.upload)?;
            partial.blend.vectors.insert(group.clone(), vector);
        }
        Ok(())
    }

    /// Looks at how large the values became; nothing else waits for the GPU.
    fn finish(&self, recipe: &Recipe, mut partial: PartialBlend) -> Result<GpuBlend> {
        let gpu = self.kernels.gpu();
        let bytes = (partial.weights.len() * 4) as u64;
        let readback = Readback::new(gpu, "largest of a blend", bytes)?;
        let mut recorder = gpu.recorder("largest of a blend");
        recorder.read(&partial.largest, 0, bytes, &readback);
        let submission = recorder.submit()?;
        let largest: Vec<f32> =
            readback.view(gpu, &submission, bytes, bytemuck::pod_collect_to_vec)?;
        for (weight, value) in partial.weights.clone().into_iter().zip(largest) {
            let half = |m: &GpuMatrix| m.format() == Format::F16;
            if value <= F16_MAX || !partial.blend.matrices.get(&weight).is_some_and(half) {
                continue;
            }
            if self.dtype == WeightsDType::F16 {
                let tensor = format!("{} with its adapters", self.model.weights().name(weight));
                return Err(rwkv_kernels::Error::OutsideF16 { tensor, value }.into());
            }
            if let Some(base) = self.base(weight, &mut partial.upload)? {
                partial.blend.matrices.remove(&weight);
                let matrix = self.matrix(recipe, weight, &base, Format::F32, &mut partial)?;
                partial.blend.matrices.insert(weight, matrix);
            }
        }
        self.pool.trim();
        Ok(partial.blend)
    }
}

impl<'a> GpuBlender<'a> {
    /// The base model's matrix, row by row: resident, or for one that lies input by input or has only entries from its file once more.
    fn base(&self, weight: Weight, upload: &mut Upload) -> Result<Option<Base<'a>>> {
        if let Some(matrix) = self.weights.matrix(weight) {
            return Ok(Some(Base::Resident(matrix)));
        }
        if self.weights.columns(weight).is_none() && self.weights.sparse(weight).is_none() {
            return Ok(None);
        }
        let weights = self.model.weights();
        let (name, shape) = (weights.name(weight), weights.describe(weight)?.1);
        let mut loaded = None;
        weights.with_rows(weight, 0..shape.rows.0, &mut |matrix| {
            let gpu = self.kernels.gpu();
            loaded = Some(GpuMatrix::new(gpu, &name, matrix, Format::F16, upload)?);
            Ok(())
        })?;
        Ok(loaded.map(Base::Loaded))
    }

    /// The blend of `base` in `format`.
    fn matrix(
        &self,
        recipe: &Recipe,
        weight: Weight,
        base: &GpuMatrix,
        format: Format,
        partial: &mut PartialBlend,
    ) -> Result<GpuMatrix> {
        let gpu = self.kernels.gpu();
        let name = self.model.weights().name(weight);
        let (rows, cols) = (base.shape().rows.0, base.shape().cols.0);
        let recipe = recipe.of(weight, rows, cols);
        let y = GpuMatrix::zeros(gpu, &name, base.shape(), format)?;
        let index = partial.weights.iter().position(|w| *w == weight);
        let rank = recipe.rank;
        let a = self.operand(rank, cols, &recipe.a, &mut partial.upload)?;
        let width = Blend::own_width(rank, cols, recipe.has_whole());
        let slab = (SLAB / (View::stride(width) * 4).max(1)).max(1);
        for first in (0..rows).step_by(slab) {
            let count = slab.min(rows - first);
            let own = recipe.own(first, count, width)?;
            let own = self.operand(count, width, &own, &mut partial.upload)?;
            let dispatches = self.kernels.blend(&Blend {
                base,
                first,
                rows: count,
                keep: recipe.keep,
                a: a.as_ref().map(Operand::view),
                own: own.as_ref().map(Operand::view),
                whole: recipe.has_whole(),
                largest: (&partial.largest, index.unwrap_or(0)),
                y: &y,
            })?;
            let mut recorder = gpu.recorder("blend");
            recorder.dispatch(&dispatches);
            recorder.submit()?;
        }
        Ok(y)
    }

    /// `values` on the GPU, with rows as kernels have them; none where there are no values.
    fn operand(
        &self,
        rows: usize,
        width: usize,
        values: &[f32],
        upload: &mut Upload,
    ) -> Result<Option<Operand>> {
        if values.is_empty() {
            return Ok(None);
        }
        let bytes = View::bytes(rows, width);
        let buffer = self.pool.take(BufferKind::Storage, "adapter", bytes)?;
        let stride = View::stride(width);
        if stride == width {
            upload.write(&buffer, 0, bytemuck::cast_slice(values))?;
        } else {
            let mut padded = vec![0.0f32; rows * stride];
            let source = values.chunks_exact(width.max(1));
            for (to, from) in padded.chunks_exact_mut(stride).zip(source) {
                to[..width].copy_from_slice(from);
            }
            upload.write(&buffer, 0, bytemuck::cast_slice(&padded))?;
        }
        Ok(Some(Operand {
            buffer,
            rows,
            width,
        }))
    }
}

/// A matrix of the base model.
enum Base<'a> {
    Resident(&'a GpuMatrix),
    Loaded(GpuMatrix),
}

impl std::ops::Deref for Base<'_> {
    type Target = GpuMatrix;

    fn deref(&self) -> &GpuMatrix {
        match self {
            Self::Resident(matrix) => matrix,
            Self::Loaded(matrix) => matrix,
        }
    }
}

/// A part of a change on the GPU.
struct Operand {
    buffer: Pooled,
    rows: usize,
    width: usize,
}

impl Operand {
    fn view(&self) -> View<'_> {
        View {
            buffer: &self.buffer,
            offset: 0,
            rows: self.rows,
            width: self.width,
        }
    }
}

/// Whether an error is one that freeing memory helps against.
pub(super) fn out_of_memory(error: &crate::Error) -> bool {
    use rwkv_kernels::Error::Gpu;
    let (crate::Error::Gpu(error) | crate::Error::Kernel(Gpu(error))) = error else {
        return false;
    };
    matches!(error, rwkv_gpu::Error::OutOfMemory { .. })
}

/// What was made, or nothing where the GPU's memory does not suffice: what there is already has to do then.
pub(super) fn if_there_is_room<T>(made: Result<T>) -> Result<Option<T>> {
    match made {
        Err(error) if out_of_memory(&error) => {
            tracing::debug!("no room: {error}");
            Ok(None)
        }
        other => other.map(Some),
    }
}
