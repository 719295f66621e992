//! Where each logical tensor's rows are: in the file as they are, or made of the file's bytes as they are asked for.

use super::{rescaled, sparse, turned};
use crate::files::{Access, Checkpoint, Location, TensorView};
use rustc_hash::FxHashMap;
use rwkv_kernels::{Csr, Format, Matrix};
use rwkv_mem::{Cols, Rows, Shape};
use rwkv_sched::{Error, Weight, Weights};
use std::{ops::Range, sync::OnceLock};

/// The tensors of a checkpoint under their logical names. Bytes stay in the file, but for vectors that need arithmetic.
///
/// Rows of matrices that are stored transposed (the low-rank pairs) or that a converter divided are made when
/// [`with_rows`](Weights::with_rows) wants them, and dropped afterwards. Only [`matrix`](Weights::matrix), which lends
/// what it returns, keeps such a matrix in memory.
pub(crate) struct BoundWeights {
    checkpoint: Checkpoint,
    /// In boxes, so that free places of the map take little.
    sources: FxHashMap<Weight, Box<Source>>,
}

/// Some rows of the matrix in a tensor.
struct Source {
    /// Of the tensor, in the file.
    name: String,
    /// The tensor's bytes.
    location: Location,
    format: Format,
    first_row: usize,
    rows: usize,
    cols: usize,
    place: Place,
    /// The rows, where they are not in the file and have been wanted in one piece.
    made: OnceLock<Vec<u8>>,
    /// What is known of its entries, where it is sparse.
    checked: sparse::Checked,
}

/// What the file has of a matrix.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Its rows.
    Rows,
    /// The transposes of matrices of `each` rows.
    Turned { each: usize },
    /// Its rows, divided by 2^`exponent`.
    Divided { exponent: u32 },
    /// What it was computed from.
    Computed,
    /// The entries of the whole matrix.
    Sparse,
}

impl BoundWeights {
    pub(super) fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            checkpoint: checkpoint.clone(),
            sources: FxHashMap::default(),
        }
    }

    /// Binds a vector: all elements of the tensor `name`, whatever its dimensions.
    pub(super) fn vector(&mut self, weight: Weight, name: &str) -> Result<(), Error> {
        let elements = self.find(name)?.shape.iter().product();
        self.split(&[weight], name, [1, elements], Place::Rows)
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
        self.split(weights, name, [count, len], Place::Rows)
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
            location: self.locate(name)?,
            format,
            first_row: index,
            rows: 1,
            cols: len,
            place: Place::Rows,
            made: OnceLock::new(),
            checked: sparse::Checked::default(),
        };
        self.sources.insert(weight, Box::new(source));
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

    /// Binds matrices `[out, in]`, one below the other. One alone may be sparse.
    pub(super) fn rows(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let shape = self.dimensions(name)?;
        let place = match (self.find(name)?.csr, weights) {
            (Some(_), [_]) => Place::Sparse,
            _ => Place::Rows,
        };
        self.split(weights, name, shape, place)
    }

    /// Binds a matrix that the file has divided by 2^`exponent`.
    pub(super) fn divided(
        &mut self,
        weight: Weight,
        name: &str,
        exponent: u32,
    ) -> Result<(), Error> {
        let shape = self.dimensions(name)?;
        let format = self.format(name)?;
        if !rescaled::can_multiply(format) {
            let what =
                format!("it is divided by a power of two, which cannot be undone in {format}");
            return Err(problem(name, what));
        }
        self.split(&[weight], name, shape, Place::Divided { exponent })
    }

    /// Binds matrices that the file has one below the other and transposed, `[in, n · out]`.
    pub(super) fn columns(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let [cols, rows] = self.dimensions(name)?;
        let place = self.turned(name, rows)?;
        self.split(weights, name, [rows, cols], place)
    }

    /// Binds matrices `[n, out, in]`.
    pub(super) fn stack(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let [rows, cols] = self.stacked(name, weights.len())?;
        let shape = [weights.len() * rows, cols];
        self.split(weights, name, shape, Place::Rows)
    }

    /// Binds matrices `[n, in, out]`.
    pub(super) fn column_stack(&mut self, weights: &[Weight], name: &str) -> Result<(), Error> {
        let count = weights.len();
        let [cols, rows] = self.stacked(name, count)?;
        let place = self.turned(name, rows)?;
        self.split(weights, name, [count * rows, cols], place)
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
            self.turned(name, size)?
        } else {
            Place::Rows
        };
        self.split(&[weight], name, [heads * size, size], place)
    }

    /// Binds a vector computed from that of the tensor `name`.
    pub(super) fn computed(&mut self, weight: Weight, name: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let source = Source {
            name: name.to_owned(),
            location: Location::default(),
            format: Format::F32,
            first_row: 0,
            rows: 1,
            cols: values.len(),
            place: Place::Computed,
            made: OnceLock::from(bytes),
            checked: sparse::Checked::default(),
        };
        self.sources.insert(weight, Box::new(source));
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
        place: Place,
    ) -> Result<(), Error> {
        let format = match place {
            // To those who do not ask for entries.
            Place::Sparse => Format::F16,
            _ => self.format(name)?,
        };
        let count = weights.len().max(1);
        if !rows.is_multiple_of(count) {
            let what = format!("{rows}×{cols}, which are not {count} matrices");
            return Err(problem(name, what));
        }
        let rows = rows / count;
        for (index, &weight) in weights.iter().enumerate() {
            let source = Source {
                name: name.to_owned(),
                location: self.locate(name)?,
                format,
                first_row: index * rows,
                rows,
                cols,
                place,
                made: OnceLock::new(),
                checked: sparse::Checked::default(),
            };
            self.sources.insert(weight, Box::new(source));
        }
        Ok(())
    }

    /// Where the transposes of matrices of `each` rows are, if they can be read.
    fn turned(&self, name: &str, each: usize) -> Result<Place, Error> {
        let format = self.format(name)?;
        if turned::can_turn(format) {
            return Ok(Place::Turned { each });
        }
        let what = format!("a transposed matrix in {format} cannot be read");
        Err(problem(name, what))
    }

    /// How many elements the tensor called `name` has, if there is one.
    pub(super) fn elements(&self, name: &str) -> Option<usize> {
        Some(self.checkpoint.get(name)?.shape.iter().product())
    }

    fn locate(&self, name: &str) -> Result<Location, Error> {
        let found = self.checkpoint.locate(name);
        found.ok_or_else(|| problem(name, "missing".to_owned()))
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

    fn source(&self, weight: Weight) -> Result<&Source, Error> {
        let source = self.sources.get(&weight).map(Box::as_ref);
        source.ok_or_else(|| problem(&format!("{weight:?}"), "missing".to_owned()))
    }

    /// All rows of `source`, where they lie somewhere as they are.
    fn lent<'a>(&'a self, source: &'a Source) -> Result<Option<Matrix<'a>>, Error> {
        let bytes = match (source.made.get(), source.place) {
            (Some(made), _) => made,
            (None, Place::Rows) => self.stored(source, source.first_row, source.rows)?,
            _ => return Ok(None),
        };
        source.matrix(source.rows, bytes).map(Some)
    }

    /// The bytes of `count` rows from `first` on of what `source`'s tensor has as rows.
    fn stored(&self, source: &Source, first: usize, count: usize) -> Result<&[u8], Error> {
        let row_bytes = source.row_bytes()?;
        let all = self.checkpoint.bytes_at(&source.location);
        let range = first
            .checked_mul(row_bytes)
            .zip((first.saturating_add(count)).checked_mul(row_bytes));
        all.zip(range)
            .and_then(|(all, (from, to))| all.get(from..to))
            .ok_or_else(|| source.misfit())
    }

    /// Makes rows `first .. first + count` of `source`, which do not lie anywhere as they are.
    fn make(&self, source: &Source, first: usize, count: usize) -> Result<Vec<u8>, Error> {
        let first = source.first_row + first;
        match source.place {
            Place::Turned { each } => {
                let bytes = count.checked_mul(source.row_bytes()?);
                let mut made = vec![0; bytes.ok_or_else(|| source.misfit())?];
                let stored = self.find(&source.name)?.bytes;
                turned::rows(source.format, stored, [each, source.cols], first, &mut made);
                Ok(made)
            }
            Place::Divided { exponent } => {
                let mut made = self.stored(source, first, count)?.to_vec();
                rescaled::multiply(source.format, &mut made, exponent)
                    .map_err(|what| problem(&source.name, what))?;
                Ok(made)
            }
            Place::Sparse => {
                let bytes = count.checked_mul(source.row_bytes()?);
                let mut made = vec![0; bytes.ok_or_else(|| source.misfit())?];
                sparse::expand(&self.csr(source)?, first, &mut made);
                Ok(made)
            }
            Place::Rows | Place::Computed => Ok(self.stored(source, first, count)?.to_vec()),
        }
    }
}

impl BoundWeights {
    /// Tells the system about the bytes that `weight` is made of. Small ones share their pages with others.
    fn advise(&self, weight: Weight, access: Access) {
        let Some(source) = self.sources.get(&weight) else {
            return;
        };
        let row_bytes = source.row_bytes().unwrap_or(0);
        let rows = match source.place {
            Place::Rows | Place::Divided { .. } => {
                let start = source.first_row.saturating_mul(row_bytes);
                start..start.saturating_add(source.rows.saturating_mul(row_bytes))
            }
            Place::Turned { .. } | Place::Sparse => 0..usize::MAX,
            Place::Computed => return,
        };
        self.checkpoint.advise(&source.name, rows, access);
    }

    /// The entries of `source`, which is sparse.
    fn csr<'a>(&'a self, source: &'a Source) -> Result<Csr<'a>, Error> {
        let parts = self.find(&source.name)?.csr;
        let parts = parts.ok_or_else(|| problem(&source.name, "it is not sparse".to_owned()))?;
        let name = format!("tensor {}", source.name);
        let shape = Shape::new(source.rows, source.cols);
        Ok(source.checked.matrix(&name, shape, parts)?)
    }
}

impl Source {
    fn row_bytes(&self) -> Result<usize, Error> {
        self.format
            .row_bytes(self.cols)
            .ok_or_else(|| self.misfit())
    }

    fn misfit(&self) -> Error {
        let what = format!("rows of {} do not fit {}", self.cols, self.format);
        problem(&self.name, what)
    }

    /// The matrix of `rows` rows in `bytes`.
    fn matrix<'a>(&self, rows: usize, bytes: &'a [u8]) -> Result<Matrix<'a>, Error> {
        Ok(Matrix::new(
            self.format,
            Rows(rows),
            Cols(self.cols),
            bytes,
        )?)
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
        let source = self.source(weight)?;
        if let Some(lent) = self.lent(source)? {
            return Ok(lent);
        }
        let made = self.make(source, 0, source.rows)?;
        source.matrix(source.rows, source.made.get_or_init(|| made))
    }

    fn has(&self, weight: Weight) -> bool {
        self.describe(weight).is_ok()
    }

    fn name(&self, weight: Weight) -> String {
        self.sources
            .get(&weight)
            .map_or_else(|| format!("{weight:?}"), |s| s.name.clone())
    }

    fn describe(&self, weight: Weight) -> Result<(Format, Shape), Error> {
        let source = self.source(weight)?;
        source.row_bytes()?;
        Ok((source.format, Shape::new(source.rows, source.cols)))
    }

    fn will_need(&self, weight: Weight) {
        self.advise(weight, Access::Soon);
    }

    fn wont_need(&self, weight: Weight) {
        self.advise(weight, Access::Done);
    }

    fn entries(&self, weight: Weight) -> Option<u64> {
        let source = self.sources.get(&weight)?;
        Some(self.find(&source.name).ok()?.csr?.entries()).filter(|_| source.place == Place::Sparse)
    }

    fn sparse(&self, weight: Weight) -> Result<Option<Csr<'_>>, Error> {
        let source = self.source(weight)?;
        match source.place {
            Place::Sparse => self.csr(source).map(Some),
            _ => Ok(None),
        }
    }

    fn is_in_place(&self, weight: Weight) -> bool {
        let source = self.sources.get(&weight);
        source.is_none_or(|source| self.lent(source).is_ok_and(|lent| lent.is_some()))
    }

    fn with_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        read: &mut dyn FnMut(&Matrix<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let source = self.source(weight)?;
        if let Some(lent) = self.lent(source)? {
            return read(&lent.rows(rows)?);
        }
        let end = rows.end.min(source.rows);
        let first = rows.start.min(end);
        let made = self.make(source, first, end - first)?;
        read(&source.matrix(end - first, &made)?)
    }
}
