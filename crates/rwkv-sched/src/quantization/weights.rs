//! Weights with their matrices re-encoded in memory.

use super::{Chosen, Quantization, encode_rows, packed_bytes};
use crate::{LoadProgress, LoadStage, Model, Result, Weight, Weights};
use rwkv_kernels::{Csr, Format, Matrix};
use rwkv_mem::Shape;
use std::{collections::HashMap, ops::Range, sync::Arc};

/// Weights of which some are re-encoded, in memory; the others stay where they are.
pub struct QuantizedWeights {
    source: Arc<dyn Weights>,
    matrices: HashMap<Weight, Packed>,
}

struct Packed {
    chosen: Chosen,
    shape: Shape,
    bytes: Vec<u8>,
}

impl QuantizedWeights {
    /// Re-encodes those of `tensors` that `quantization` changes, one after the other, each on all threads.
    ///
    /// # Errors
    /// What reading or packing a tensor says; it names the tensor.
    pub fn new(
        source: Arc<dyn Weights>,
        tensors: &[Weight],
        quantization: &Quantization,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let changing = || {
            tensors
                .iter()
                .copied()
                .filter(|weight| quantization.packing(*weight).is_some())
        };
        let mut total = 0u64;
        for weight in changing() {
            total = total.saturating_add(packed_bytes(source.describe(weight)?));
        }
        let mut done = 0u64;
        let mut matrices = HashMap::new();
        for weight in changing() {
            let (format, shape) = source.describe(weight)?;
            if let Some(chosen) = quantization.choose(source.as_ref(), weight)?
                && chosen.format != format
            {
                let name = source.name(weight);
                let size = chosen
                    .format
                    .row_bytes(shape.cols.0)
                    .and_then(|n| n.checked_mul(shape.rows.0));
                let mut bytes = vec![0; size.unwrap_or(0)];
                source.with_rows(weight, 0..shape.rows.0, &mut |matrix| {
                    encode_rows(&name, matrix, chosen.format, &mut bytes)
                })?;
                let packed = Packed {
                    chosen,
                    shape,
                    bytes,
                };
                matrices.insert(weight, packed);
            }
            done = done.saturating_add(packed_bytes((format, shape)));
            progress(LoadProgress {
                stage: LoadStage::Tensors,
                done,
                total,
            });
        }
        Ok(Self { source, matrices })
    }

    /// What became of the matrices that changed.
    pub fn chosen(&self) -> impl Iterator<Item = (Weight, Chosen)> + '_ {
        self.matrices.iter().map(|(weight, p)| (*weight, p.chosen))
    }
}

impl Weights for QuantizedWeights {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        match self.matrices.get(&weight) {
            Some(Packed {
                chosen,
                shape,
                bytes,
            }) => Ok(Matrix::new(chosen.format, shape.rows, shape.cols, bytes)?),
            None => self.source.matrix(weight),
        }
    }

    fn name(&self, weight: Weight) -> String {
        self.source.name(weight)
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        match self.matrices.get(&weight) {
            Some(packed) => Ok((packed.chosen.format, packed.shape)),
            None => self.source.describe(weight),
        }
    }

    fn will_need(&self, weight: Weight) {
        self.source.will_need(weight);
    }

    fn wont_need(&self, weight: Weight) {
        self.source.wont_need(weight);
    }

    fn entries(&self, weight: Weight) -> Option<u64> {
        let changed = self.matrices.contains_key(&weight);
        self.source.entries(weight).filter(|_| !changed)
    }

    fn sparse(&self, weight: Weight) -> Result<Option<Csr<'_>>> {
        if self.matrices.contains_key(&weight) {
            return Ok(None);
        }
        self.source.sparse(weight)
    }

    fn is_in_place(&self, weight: Weight) -> bool {
        self.matrices.contains_key(&weight) || self.source.is_in_place(weight)
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.matrices.contains_key(&weight) {
            return read(&self.matrix(weight)?.rows(rows)?);
        }
        self.source.with_rows(weight, rows, read)
    }
}

impl Model {
    /// The same model with its matrices re-encoded in memory, as the CPU executor needs them; a GPU converts while it
    /// uploads ([`crate::LoadOptions::quantization`]).
    ///
    /// # Errors
    /// [`crate::Error::Quantization`] for layers that the model does not have, or a tensor that cannot be packed.
    pub fn quantized(
        &self,
        quantization: &Quantization,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        quantization.check(self.config().layers)?;
        let weights = QuantizedWeights::new(
            self.shared_weights(),
            &self.tensors(),
            quantization,
            progress,
        )?;
        Ok(self.with_weights(Arc::new(weights)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{BlockWeight as B, InMemoryWeights, Lora, quantization::tests::weights};
    use rwkv_mem::{Cols, Rows};

    #[test]
    fn weights_are_those_of_the_encoder() {
        let source = Arc::new(weights(64));
        let tensors = [
            Weight::Embedding,
            Weight::Head,
            Weight::Block(0, B::FfnValue),
            Weight::Block(0, B::LoraDown(Lora::Decay)),
        ];
        let quantization: Quantization = "q8_0".parse().unwrap();
        let mut last = None;
        let quantized =
            QuantizedWeights::new(source.clone(), &tensors, &quantization, &mut |progress| {
                last = Some(progress);
            })
            .unwrap();
        assert_eq!(last.map(|p| (p.done, p.total)), Some((1536, 1536)));
        assert_eq!(quantized.chosen().count(), 3);
        let matrix = quantized.matrix(Weight::Head).unwrap();
        assert_eq!(matrix.format(), Format::Q8_0);
        let values = source.vector(Weight::Head, 128).unwrap();
        let mut want = vec![0; 2 * 68];
        Format::Q8_0.spec().quantize(&values, &mut want);
        assert_eq!(matrix.bytes(), want);
        quantized
            .with_rows(Weight::Head, 1..2, &mut |row| {
                assert_eq!(row.bytes(), &want[68..]);
                Ok(())
            })
            .unwrap();
        let pair = Weight::Block(0, B::LoraDown(Lora::Decay));
        assert_eq!(quantized.describe(pair).unwrap().0, Format::F32);
        // What is right already stays where it is.
        let again: Arc<dyn Weights> = Arc::new(quantized);
        let twice = QuantizedWeights::new(again, &tensors, &quantization, &mut |_| {}).unwrap();
        assert_eq!(twice.chosen().count(), 0);
    }

    #[test]
    fn f16_has_a_range() {
        let mut weights = InMemoryWeights::default();
        weights
            .insert(Weight::Head, Format::F32, Rows(1), Cols(2), &[1.0, 1e5])
            .unwrap();
        let quantization: Quantization = "f16".parse().unwrap();
        let result = QuantizedWeights::new(
            Arc::new(weights),
            &[Weight::Head],
            &quantization,
            &mut |_| {},
        );
        let error = result.err().unwrap().to_string();
        assert!(
            error.contains("Head") && error.contains("100000"),
            "{error}"
        );
    }
}
