//! Where each logical tensor's bytes are: a part of a tensor in the file, or a transposed copy.

use crate::files::{Checkpoint, TensorView};
use rwkv_kernels::{Format, Matrix};
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{Error, Weight, Weights};
use std::collections::HashMap;

/// The tensors of a checkpoint under their logical names. Bytes stay in the file, but for small matrices that are
/// stored transposed.
pub(crate) struct BoundWeights {
    checkpoint: Checkpoint,
    sources: HashMap<Weight, Source>,
}

struct Source {
    /// In the file.
    name: String,
    format: Format,
    rows: usize,
    cols: usize,
    place: Place,
}

enum Place {
    /// The rows from here on.
    File { first_row: usize },
    /// A copy.
    Memory(Vec<u8>),
}

impl BoundWeights {
    pub(super) fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            checkpoint: checkpoint.clone(),
            sources: HashMap::new(),
        }
    }

    /// The dimensions of the tensor called `name`, if it is a matrix.
    pub(super) fn matrix_shape(&self, name: &str) -> Option<[usize; 2]> {
        self.checkpoint.get(name)?.shape.try_into().ok()
    }

    /// Binds a vector: all elements of the tensor `name`, whatever its dimensions.
    pub(super) fn vector(&mut self, weight: Weight, name: &str) -> Result<(), Error> {
        let tensor = self.find(name)?;
        let elements = tensor.shape.iter().product();
        self.file(weight, name, 1, elements, 0)
    }

    /// Binds a matrix `[out, in]`.
    pub(super) fn matrix(&mut self, weight: Weight, name: &str) -> Result<(), Error> {
        let [rows, cols] = self.dimensions(name)?;
        self.file(weight, name, rows, cols, 0)
    }

    /// Binds part `index` of the tensor `name`, which stacks `count` vectors of `len` elements.
    pub(super) fn part(
        &mut self,
        weight: Weight,
        name: &str,
        [index, count]: [usize; 2],
        len: usize,
    ) -> Result<(), Error> {
        let elements: usize = self.find(name)?.shape.iter().product();
        if count.checked_mul(len) != Some(elements) {
            let what = format!("{elements} elements, where {count} vectors of {len} are needed");
            return Err(problem(name, what));
        }
        self.file(weight, name, 1, len, index)
    }

    /// Binds a matrix that the file has as `[in, out]`: copied, since every kernel reads rows of outputs.
    pub(super) fn transposed(&mut self, weight: Weight, name: &str) -> Result<(), Error> {
        let [cols, rows] = self.dimensions(name)?;
        let format = self.format(name)?;
        if format.spec().block() != 1 {
            return Err(problem(
                name,
                format!("a transposed matrix in {format} cannot be read"),
            ));
        }
        let element = format.spec().block_bytes();
        let bytes = self.find(name)?.bytes;
        let mut copy = Vec::with_capacity(bytes.len());
        for row in 0..rows {
            for col in 0..cols {
                let at = (col * rows + row) * element;
                copy.extend_from_slice(bytes.get(at..at + element).unwrap_or(&[]));
            }
        }
        let source = Source {
            name: name.to_owned(),
            format,
            rows,
            cols,
            place: Place::Memory(copy),
        };
        self.sources.insert(weight, source);
        Ok(())
    }

    fn file(
        &mut self,
        weight: Weight,
        name: &str,
        rows: usize,
        cols: usize,
        first_row: usize,
    ) -> Result<(), Error> {
        let format = self.format(name)?;
        let source = Source {
            name: name.to_owned(),
            format,
            rows,
            cols,
            place: Place::File { first_row },
        };
        self.sources.insert(weight, source);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<TensorView<'_>, Error> {
        self.checkpoint
            .get(name)
            .ok_or_else(|| problem(name, "missing".to_owned()))
    }

    fn dimensions(&self, name: &str) -> Result<[usize; 2], Error> {
        let shape = self.find(name)?.shape;
        shape
            .try_into()
            .map_err(|_| problem(name, format!("shape {shape:?}, where a matrix is needed")))
    }

    fn format(&self, name: &str) -> Result<Format, Error> {
        self.find(name)?
            .format()
            .map_err(|e| problem(name, e.to_string()))
    }
}

fn problem(name: &str, problem: String) -> Error {
    Error::Weight {
        name: name.to_owned(),
        problem,
    }
}

impl Weights for BoundWeights {
    fn matrix(&self, weight: Weight) -> Result<Matrix<'_>, Error> {
        let source = self
            .sources
            .get(&weight)
            .ok_or_else(|| problem(&format!("{weight:?}"), "missing".to_owned()))?;
        let bytes = match &source.place {
            Place::Memory(bytes) => bytes.as_slice(),
            Place::File { first_row } => {
                let row = source.format.row_bytes(source.cols);
                let all = self.find(&source.name)?.bytes;
                row.and_then(|n| all.get(first_row * n..(first_row + source.rows) * n))
                    .ok_or_else(|| {
                        problem(
                            &source.name,
                            format!("rows of {} do not fit {}", source.cols, source.format),
                        )
                    })?
            }
        };
        Ok(Matrix::new(
            source.format,
            Rows(source.rows),
            Cols(source.cols),
            bytes,
        )?)
    }

    fn name(&self, weight: Weight) -> String {
        self.sources
            .get(&weight)
            .map_or_else(|| format!("{weight:?}"), |s| s.name.clone())
    }
}
