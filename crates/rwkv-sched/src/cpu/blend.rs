//! Blends on the processor: the changed tensors beside the base model's.

use crate::{
    Model, Result, Weight, Weights,
    adapter::{Blender, Held, Recipe},
    weights::InMemoryWeights,
};
use rustc_hash::FxHashMap;
use rwkv_kernels::{Csr, Format, Matrix, formats::outside_f16};
use rwkv_mem::Shape;
use std::{collections::HashSet, ops::Range, sync::Arc};

/// A model with some of its tensors blended.
pub(super) struct CpuBlend {
    pub(super) model: Model,
    pub(super) vectors: FxHashMap<Weight, Vec<f32>>,
    bytes: u64,
}

/// What there is of one.
#[derive(Default)]
pub(super) struct PartialBlend {
    changed: InMemoryWeights,
    vectors: FxHashMap<Weight, Vec<f32>>,
    /// Of both.
    bytes: u64,
}

impl Held for CpuBlend {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Held for PartialBlend {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Makes blends of `model`, whose vectors are `vectors`.
pub(super) struct CpuBlender<'a> {
    pub(super) model: &'a Model,
    pub(super) vectors: &'a FxHashMap<Weight, Vec<f32>>,
    pub(super) matrices: HashSet<Weight>,
}

/// Elements that are blended at a time.
const SLAB: usize = 1 << 20;

impl Blender for CpuBlender<'_> {
    type Partial = PartialBlend;
    type Blend = CpuBlend;

    fn model(&self) -> &Model {
        self.model
    }

    fn start(&self, _: &[Weight]) -> Result<PartialBlend> {
        Ok(PartialBlend::default())
    }

    fn blend(&self, recipe: &Recipe, weight: Weight, partial: &mut PartialBlend) -> Result<()> {
        if !self.matrices.contains(&weight) {
            let values = recipe.vector(self.model, weight)?;
            partial.bytes += (values.len() * 4) as u64;
            partial.vectors.insert(weight, values);
            return Ok(());
        }
        let shape = self.model.weights().describe(weight)?.1;
        let mut blended = None;
        let rows = 0..shape.rows.0;
        self.model.weights().with_rows(weight, rows, &mut |base| {
            let packed = match base.format() {
                Format::F32 | Format::Bf16 => None,
                _ => pack(recipe, weight, base, Format::F16)?,
            };
            blended = Some(if let Some(bytes) = packed {
                (Format::F16, bytes)
            } else {
                // As wide as the base, or wider where a value leaves f16.
                let bytes = pack(recipe, weight, base, Format::F32)?;
                (Format::F32, bytes.unwrap_or_default())
            });
            Ok(())
        })?;
        let Some((format, bytes)) = blended else {
            return Ok(());
        };
        partial.bytes += bytes.len() as u64;
        partial
            .changed
            .insert_packed(weight, format, shape.rows, shape.cols, bytes)
    }

    fn finish(&self, _: &Recipe, partial: PartialBlend) -> Result<CpuBlend> {
        let size = |v: &FxHashMap<Weight, Vec<f32>>| v.values().map(|v| v.len() as u64 * 4).sum();
        let changed: u64 = size(&partial.vectors);
        // The base's vectors, too: a step looks in one place.
        let mut vectors = self.vectors.clone();
        vectors.extend(partial.vectors);
        let all: u64 = size(&vectors);
        let weights = BlendedWeights {
            base: self.model.clone(),
            changed: partial.changed,
        };
        Ok(CpuBlend {
            model: self.model.with_weights(Arc::new(weights)),
            vectors,
            bytes: partial.bytes.saturating_sub(changed) + all,
        })
    }
}

/// The blended matrix in `format`, or none where it is F16 and a value does not fit.
fn pack(
    recipe: &Recipe,
    weight: Weight,
    base: &Matrix<'_>,
    format: Format,
) -> Result<Option<Vec<u8>>> {
    let (rows, cols) = (base.shape().rows.0, base.shape().cols.0);
    let recipe = recipe.of(weight, rows, cols);
    let row_bytes = format.row_bytes(cols).unwrap_or(0);
    let mut bytes = vec![0; rows * row_bytes];
    let slab = (SLAB / cols.max(1)).max(1);
    let mut values = vec![0.0; slab.min(rows) * cols];
    for (first, out) in (0..rows)
        .step_by(slab)
        .zip(bytes.chunks_mut((slab * row_bytes).max(1)))
    {
        let count = slab.min(rows - first);
        let values = &mut values[..count * cols];
        recipe.rows(base, first, values)?;
        if format == Format::F16 && outside_f16(values).is_some() {
            return Ok(None);
        }
        format.spec().quantize(values, out);
    }
    Ok(Some(bytes))
}

/// The base model's tensors, but for those that a blend changes.
struct BlendedWeights {
    base: Model,
    changed: InMemoryWeights,
}

impl Weights for BlendedWeights {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        if self.changed.has(weight) {
            self.changed.matrix(weight)
        } else {
            self.base.weights().matrix(weight)
        }
    }

    fn has(&self, weight: Weight) -> bool {
        self.base.weights().has(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        if self.changed.has(weight) {
            self.changed.describe(weight)
        } else {
            self.base.weights().describe(weight)
        }
    }

    fn entries(&self, weight: Weight) -> Option<u64> {
        let changed = self.changed.has(weight);
        self.base.weights().entries(weight).filter(|_| !changed)
    }

    fn sparse(&self, weight: Weight) -> Result<Option<Csr<'_>>> {
        if self.changed.has(weight) {
            return Ok(None);
        }
        self.base.weights().sparse(weight)
    }

    fn is_in_place(&self, weight: Weight) -> bool {
        self.changed.has(weight) || self.base.weights().is_in_place(weight)
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.changed.has(weight) {
            self.changed.with_rows(weight, rows, read)
        } else {
            self.base.weights().with_rows(weight, rows, read)
        }
    }

    fn name(&self, weight: Weight) -> String {
        self.base.weights().name(weight)
    }
}
