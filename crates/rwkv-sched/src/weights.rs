//! Logical names of a model's tensors, and where the tensors come from.

use crate::{Error, Result};
use rwkv_kernels::{Csr, Format, Matrix};
use rwkv_mem::{Cols, Rows, Shape};
use std::{collections::HashMap, ops::Range};

/// The two vectors of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Affine {
    /// What multiplies.
    Weight,
    /// What is added.
    Bias,
}

/// The low-rank pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lora {
    /// w: the decay, of versions 6 and 7.
    Decay,
    /// a: the in-context learning rate of version 7.
    Rate,
    /// v: how much of the first layer's value is mixed in, in version 7; not in layer 0.
    Value,
    /// g: version 7's gate, which has no bias.
    Gate,
    /// What version 6 adds to one of its mixes (decay, key, value, receptance, gate); no bias of its own.
    Mix(Mix),
    /// s: version 7a's weight of the channel mix, `[R, C]` and `[F, R]` around the token's matrix of `R × R`, with a
    /// bias of `[F]`.
    DeepEmbed,
}

/// The token-shift mixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mix {
    /// Receptance.
    Receptance,
    /// Decay.
    Decay,
    /// Key.
    Key,
    /// Value.
    Value,
    /// In-context learning rate.
    Rate,
    /// Gate.
    Gate,
    /// What version 6 computes its other mixes from.
    Base,
}

/// A tensor of one layer. Matrices are `[out, in]`, the low-rank ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockWeight {
    /// The norm before the time mix, `[C]`.
    AttNorm(Affine),
    /// A mix of the time mix's token shift, `[C]`. It weighs the previous token in versions 6 and 7, the current one in
    /// versions 4 and 5.
    AttMix(Mix),
    /// `[C, C]`.
    AttReceptance,
    /// `[C, C]`.
    AttKey,
    /// `[C, C]`.
    AttValue,
    /// `[C, C]`, of versions 5.1 to 6.
    AttGate,
    /// `[C, C]`.
    AttOutput,
    /// `time_decay` of versions 4 and 5 as training left it, one a channel, `[C]`.
    Decay,
    /// The first matrix of a pair, `[R, C]`.
    LoraDown(Lora),
    /// The second matrix of a pair, `[C, R]`.
    LoraUp(Lora),
    /// What a pair's product is added to, `[C]`.
    LoraBias(Lora),
    /// k_k: scales the key that is removed, `[C]`.
    RemovalKey,
    /// k_a: how far the rate scales the key that is added, `[C]`.
    ReplacementKey,
    /// The weight of the current token, `[C]`: `time_first` of version 4, u of versions 5 and 6 (after the exponential
    /// where a file has its logarithm), r_k of version 7.
    Bonus,
    /// The group norm after the recurrence, `[C]`.
    GroupNorm(Affine),
    /// The norm before the channel mix, `[C]`.
    FfnNorm(Affine),
    /// A mix of the channel mix's token shift, `[C]`: the key's, and the receptance's in versions 4 to 6.
    FfnMix(Mix),
    /// `[C, C]`, of versions 4 to 6.
    FfnReceptance,
    /// `[F, C]`.
    FfnKey,
    /// `[C, F]`.
    FfnValue,
    /// s_emb: version 7a's matrix of `R × R` for each token, `[V, R·R]`.
    FfnEmbedding,
    /// s_emb_x: what makes a part of that matrix from the normed embedding, `[R·R, C]`.
    FfnEmbeddingUp,
    /// The recurrence's state before the first token, where a checkpoint has one, `[H·N, N]` as `[head, value, key]`.
    InitialState,
}

/// A tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    /// `[V, C]`.
    Embedding,
    /// The norm of the embedding, `[C]`.
    EmbeddingNorm(Affine),
    /// A layer's.
    Block(usize, BlockWeight),
    /// The norm before the head, `[C]`.
    OutputNorm(Affine),
    /// `[V, C]`.
    Head,
}

/// Where a model's tensors come from: binds logical names to packed bytes, which stay where they are (a mapped file,
/// say).
pub trait Weights: Send + Sync {
    /// A tensor; a vector is one row.
    ///
    /// # Errors
    /// [`Error::Weight`] when the model has none, or cannot be read as one.
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>>;

    /// Whether there is such a tensor: a model is whole without some.
    fn has(&self, weight: Weight) -> bool {
        self.describe(weight).is_ok()
    }

    /// What the tensor is called in its file, for messages.
    fn name(&self, weight: Weight) -> String;

    /// How a tensor is packed, and its shape. None of its bytes is needed for that.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
        let matrix = self.matrix(weight)?;
        Ok((matrix.format(), matrix.shape()))
    }

    /// A hint that a tensor will be read soon: what is not in memory of it may be on its way by then.
    fn will_need(&self, _weight: Weight) {}

    /// A hint that a tensor has been read, and will not be soon: what the system has in memory of it may go. It can still
    /// be read.
    fn wont_need(&self, _weight: Weight) {}

    /// How many elements of a matrix are kept, where it lies as compressed sparse rows; `None` for all others. Nothing
    /// but a header is read for that. To those who do not ask, such a matrix is one of F16.
    fn entries(&self, _weight: Weight) -> Option<u64> {
        None
    }

    /// The compressed sparse rows of a matrix that lies as such; `None` for all others.
    ///
    /// # Errors
    /// [`Error::Weight`] and [`Error::Kernel`] for parts that make no matrix; both name the tensor.
    fn sparse(&self, _weight: Weight) -> Result<Option<Csr<'_>>> {
        Ok(None)
    }

    /// Whether a tensor lies somewhere as it is, so that [`matrix`](Self::matrix) copies nothing. The rows of others are
    /// better made as they are needed, by [`with_rows`](Self::with_rows).
    fn is_in_place(&self, _weight: Weight) -> bool {
        true
    }

    /// Hands `rows` of a tensor to `read`. Where tensors are made on demand, these rows alone are made, and dropped
    /// afterwards; [`matrix`](Self::matrix) has to keep what it returns.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix), and those of `read`.
    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        read(&self.matrix(weight)?.rows(rows)?)
    }

    /// A vector of `len` elements.
    ///
    /// # Errors
    /// [`Error::Weight`] when there is none of this length.
    fn vector(&self, weight: Weight, len: usize) -> Result<Vec<f32>> {
        let shape = self.describe(weight)?.1;
        if shape.elements() != Some(len) {
            let problem = format!("{shape} where {len} elements are needed");
            return Err(Error::Weight {
                name: self.name(weight),
                problem,
            });
        }
        let mut values = vec![0.0; len];
        self.with_rows(weight, 0..shape.rows.0, &mut |rows| {
            rows.format().spec().dequantize(rows.bytes(), &mut values);
            Ok(())
        })?;
        Ok(values)
    }
}

/// Tensors held in memory.
#[derive(Clone, Debug, Default)]
pub struct InMemoryWeights {
    tensors: HashMap<Weight, (Format, Rows, Cols, Vec<u8>)>,
}

impl InMemoryWeights {
    /// Packs `values` (row-major, `rows · cols`) as `format` and keeps them as `weight`.
    ///
    /// # Errors
    /// [`Error::Weight`] when the sizes do not fit.
    pub fn insert(
        &mut self,
        weight: Weight,
        format: Format,
        rows: Rows,
        cols: Cols,
        values: &[f32],
    ) -> Result<()> {
        let bytes = format.row_bytes(cols.0).and_then(|n| n.checked_mul(rows.0));
        match bytes.filter(|_| rows.0.checked_mul(cols.0) == Some(values.len())) {
            None => {
                let problem = format!(
                    "{} values do not make {}×{} of {format}",
                    values.len(),
                    rows.0,
                    cols.0
                );
                Err(Error::Weight {
                    name: self.name(weight),
                    problem,
                })
            }
            Some(bytes) => {
                let mut packed = vec![0; bytes];
                format.spec().quantize(values, &mut packed);
                self.tensors.insert(weight, (format, rows, cols, packed));
                Ok(())
            }
        }
    }
}

impl InMemoryWeights {
    /// Keeps `bytes`, rows as `format` packs them, as `weight`.
    ///
    /// # Errors
    /// [`Error::Weight`] when the sizes do not fit.
    pub fn insert_packed(
        &mut self,
        weight: Weight,
        format: Format,
        rows: Rows,
        cols: Cols,
        bytes: Vec<u8>,
    ) -> Result<()> {
        if let Err(error) = Matrix::new(format, rows, cols, &bytes) {
            return Err(Error::Weight {
                name: self.name(weight),
                problem: error.to_string(),
            });
        }
        self.tensors.insert(weight, (format, rows, cols, bytes));
        Ok(())
    }
}

impl Weights for InMemoryWeights {
    fn has(&self, weight: Weight) -> bool {
        self.tensors.contains_key(&weight)
    }

    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        match self.tensors.get(&weight) {
            Some((format, rows, cols, bytes)) => Ok(Matrix::new(*format, *rows, *cols, bytes)?),
            None => Err(Error::Weight {
                name: self.name(weight),
                problem: "missing".to_owned(),
            }),
        }
    }

    fn name(&self, weight: Weight) -> String {
        format!("{weight:?}")
    }

    fn is_in_place(&self, weight: Weight) -> bool {
        self.has(weight)
    }
}
