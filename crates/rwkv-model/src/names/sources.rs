//! Where each logical tensor's bytes are: rows of a tensor in the file, or of a copy.

use super::rescaled;
use crate::files::{Checkpoint, TensorView};
use rwkv_kernels::{Format, Matrix};
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{Error, Weight, Weights};
use std::{collections::HashMap, sync::Arc};

/// The tensors of a checkpoint under their logical names. Bytes stay in the file, but for matrices that are stored
/// transposed (the low-rank pairs), vectors that need arithmetic, and matrices that a converter divided.
pub(crate) struct BoundWeights {
    checkpoint: Checkpoint,
    sources: HashMap<Weight, Source>,
}

/// Some rows of a matrix.
struct Source {
    /// In the file.
    name: String,
    format: Format,
    first_row: usize,
    rows: usize,
    cols: usize,
    place: Place,
}

/// Where the matrix is.
#[derive(Clone)]
enum Place {
    /// In the file.
    File,
    /// A copy, shared by all that have a part of it.
    Memory(Arc<[u8]>),
}

impl BoundWeights {
    pub(super) fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            checkpoint: checkpoint.clone(),
            sources: HashMap::new(),
        }
    }

    /// Binds a vector: all elements of the tensor `name`, whatever its dimensions.
    pub(super) fn vector(&mut self, weight: Weight, name: &str) -> Result<(), Error> {
        let elements = self.find(name)?.shape.iter().product();
        self.split(&[weight], name, [1, elements], &Place::File)
    }

    /// Binds vectors of `len` elements, which the tensor `name` has one after the other.
    pub(super) fn vectors(
        &mut self,
        weights: &[Weight],
        name: &str,
        len: usize,
    ) -> Result<(), Error> {
        let count = weights.len();
        self.vector_count(name, count, len)?;
        self.split(weights, name, [count, len], &Place::File)
    }

    /// Binds vector `index` of `count` vectors of `len` elements.
    pub(super) fn vector_of(
        &mut self,
        weight: Weight,
        name: &str,
        [index, count]: [usize; 2],
        len: usize,
    ) -> Result<(), Error> {
        self.vector_count(name, count, len)?;
        let format = self.format(name)?;
        let source = Source {
            name: name.to_owned(),
            format,
            first_row: index,
            rows: 1,
            cols: len,
            place: Place::File,
        };
        self.sources.insert(weight, source);
        Ok(())
    }

    fn vector_count(&self, name: &str, count: usize, len: usize) -> Result<(), Error> {
        let elements: usize = self.find(name)?.shape.iter().product();
        if count.checked_mul(len) == Some(elements) {
            return Ok(());
        }
        let what = format!("{elements} elements, where {count} vectors of {len} are needed");
        Err(problem(name, what))
    }

    /// Binds matrices `[out, in]`, one below the other.
    pub(super) fn rows(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let shape = self.dimensions(name)?;
        self.split(weights, name, shape, &Place::File)
    }

    /// Binds a matrix that the file has divided by 2^`exponent`, as a copy.
    pub(super) fn multiplied(
        &mut self,
        weight: Weight,
        name: &str,
        exponent: u32,
    ) -> Result<(), Error> {
        let shape = self.dimensions(name)?;
        let format = self.format(name)?;
        let copy = rescaled::multiplied(format, self.find(name)?.bytes, exponent)
            .map_err(|what| problem(name, what))?;
        self.split(&[weight], name, shape, &Place::Memory(copy.into()))
    }

    /// Binds matrices that the file has one below the other and transposed, `[in, n · out]`: copied, since every
    /// kernel reads rows of outputs.
    pub(super) fn columns(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let [cols, rows] = self.dimensions(name)?;
        let copy = self.transposed(name, 1, [cols, rows])?;
        self.split(weights, name, [rows, cols], &copy)
    }

    /// Binds matrices `[n, out, in]`.
    pub(super) fn stack(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let [rows, cols] = self.stacked(name, weights.len())?;
        let shape = [weights.len() * rows, cols];
        self.split(weights, name, shape, &Place::File)
    }

    /// Binds matrices `[n, in, out]`, copied.
    pub(super) fn column_stack(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let count = weights.len();
        let [cols, rows] = self.stacked(name, count)?;
        let copy = self.transposed(name, count, [cols, rows])?;
        self.split(weights, name, [count * rows, cols], &copy)
    }

    /// Binds the states of `heads` heads, `size × size` each, transposed where `turned`.
    pub(super) fn states(
        &mut self,
        weight: Weight,
        name: &str,
        [heads, size]: [usize; 2],
        turned: bool,
    ) -> Result<(), Error> {
        let shape = self.find(name)?.shape;
        if shape != [heads, size, size] {
            let what = format!("shape {shape:?}, where [{heads}, {size}, {size}] is needed");
            return Err(problem(name, what));
        }
        let place = if turned {
            self.transposed(name, heads, [size, size])?
        } else {
            Place::File
        };
        self.split(&[weight], name, [heads * size, size], &place)
    }

    /// Binds a vector computed from that of the tensor `name`.
    pub(super) fn computed(&mut self, weight: Weight, name: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let source = Source {
            name: name.to_owned(),
            format: Format::F32,
            first_row: 0,
            rows: 1,
            cols: values.len(),
            place: Place::Memory(bytes.into()),
        };
        self.sources.insert(weight, source);
    }

    /// The elements of the tensor `name`.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let tensor = self.find(name)?;
        let mut values = vec![0.0; tensor.shape.iter().product()];
        self.format(name)?
            .spec()
            .dequantize(tensor.bytes, &mut values);
        Ok(values)
    }

    /// Binds `weights` to equal parts of the tensor `name`, seen as `rows × cols`.
    fn split(
        &mut self,
        weights: &[Weight],
        name: &str,
        [rows, cols]: [usize; 2],
        place: &Place,
    ) -> Result<(), Error> {
        let format = self.format(name)?;
        let count = weights.len().max(1);
        if !rows.is_multiple_of(count) {
            let what = format!("{rows}×{cols}, which are not {count} matrices");
            return Err(problem(name, what));
        }
        let rows = rows / count;
        for (index, &weight) in weights.iter().enumerate() {
            let source = Source {
                name: name.to_owned(),
                format,
                first_row: index * rows,
                rows,
                cols,
                place: place.clone(),
            };
            self.sources.insert(weight, source);
        }
        Ok(())
    }

    /// A copy of the tensor `name`, `count` matrices of `rows × cols`, with each of them transposed.
    fn transposed(
        &self,
        name: &str,
        count: usize,
        [rows, cols]: [usize; 2],
    ) -> Result<Place, Error> {
        let format = self.format(name)?;
        if format.spec().block() != 1 {
            let what = format!("a transposed matrix in {format} cannot be read");
            return Err(problem(name, what));
        }
        let element = format.spec().block_bytes();
        let bytes = self.find(name)?.bytes;
        let mut copy = Vec::with_capacity(bytes.len());
        // A tensor without elements may have any number of columns.
        let count = if bytes.is_empty() { 0 } else { count };
        for matrix in 0..count {
            for col in 0..cols {
                for row in 0..rows {
                    let at = ((matrix * rows + row) * cols + col) * element;
                    copy.extend_from_slice(bytes.get(at..at + element).unwrap_or(&[]));
                }
            }
        }
        Ok(Place::Memory(copy.into()))
    }

    /// How many elements the tensor called `name` has, if there is one.
    pub(super) fn elements(&self, name: &str) -> Option<usize> {
        Some(self.checkpoint.get(name)?.shape.iter().product())
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

    /// The size of each of the `count` matrices of the tensor `name`.
    fn stacked(&self, name: &str, count: usize) -> Result<[usize; 2], Error> {
        match *self.find(name)?.shape {
            [n, rows, cols] if n == count => Ok([rows, cols]),
            ref shape => {
                let what = format!("shape {shape:?}, where a stack of {count} matrices is needed");
                Err(problem(name, what))
            }
        }
    }

    fn format(&self, name: &str) -> Result<Format, Error> {
        self.find(name)?
            .format()
            .map_err(|e| problem(name, e.to_string()))
    }
}

/// What is wrong with the tensor `name`.
pub(super) fn problem(name: &str, problem: String) -> Error {
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
        let all = match &source.place {
            Place::Memory(bytes) => bytes,
            Place::File => self.find(&source.name)?.bytes,
        };
        let (from, to) = (source.first_row, source.first_row + source.rows);
        let bytes = source
            .format
            .row_bytes(source.cols)
            .and_then(|n| all.get(from * n..to * n))
            .ok_or_else(|| {
                let what = format!("rows of {} do not fit {}", source.cols, source.format);
                problem(&source.name, what)
            })?;
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
