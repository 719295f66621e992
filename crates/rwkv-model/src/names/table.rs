//! How logical tensors lie in the tensors of a file: one row a tensor of the file. Reading and writing walk the same
//! rows.

use rwkv_sched::{BlockWeight, Error, ModelConfig, Weight, Weights};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: String,
    /// What it holds, in this order: one logical tensor, or several of one shape.
    pub(crate) holds: Vec<Weight>,
    /// How.
    pub(crate) layout: Layout,
    /// Whether files have it.
    pub(crate) presence: Presence,
}

/// Whether a tensor is in every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is.
    Always,
    /// A model is whole without it.
    Optional,
    /// A copy of another tensor, which other programs want to find and nobody needs.
    Copy,
}

/// How a tensor of a file holds its logical tensors. `C` channels are `H` heads of `N`; `n` is how many it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A vector, `[C]`.
    Flat,
    /// A vector as training broadcasts it, `[1, 1, C]`.
    Broadcast,
    /// A vector by head, `[H, N]`.
    Heads,
    /// A vector whose channels are alike in a head, `[H]`.
    PerHead,
    /// Vectors one after the other, `[n, 1, 1, C]`.
    Vectors,
    /// Matrices one below the other, `[n · out, in]`.
    Rows,
    /// The transpose of that, `[in, n · out]`.
    Columns,
    /// Matrices, `[n, out, in]`.
    Stack,
    /// Transposed matrices, `[n, in, out]`.
    ColumnStack,
    /// A state, `[H, value, key]`.
    State,
    /// A state, `[H, key, value]`.
    TurnedState,
}

impl Layout {
    /// The same tensor with its last two axes exchanged; vectors stay what they are.
    pub(crate) fn turned(self) -> Self {
        match self {
            Self::Rows => Self::Columns,
            Self::Columns => Self::Rows,
            Self::Stack => Self::ColumnStack,
            Self::ColumnStack => Self::Stack,
            Self::State => Self::TurnedState,
            Self::TurnedState => Self::State,
            vector => vector,
        }
    }

    /// The shape of a tensor that holds `count` logical ones of `rows × cols`, outermost dimension first.
    fn shape(self, count: usize, [rows, cols]: [usize; 2], config: &ModelConfig) -> Vec<usize> {
        let (heads, size) = (config.heads(), config.head_size);
        match self {
            Self::Flat => vec![cols],
            Self::Broadcast => vec![1, 1, cols],
            Self::Heads => vec![heads, size],
            Self::PerHead => vec![heads],
            Self::Vectors => vec![count, 1, 1, cols],
            Self::Rows => vec![count.saturating_mul(rows), cols],
            Self::Columns => vec![cols, count.saturating_mul(rows)],
            Self::Stack => vec![count, rows, cols],
            Self::ColumnStack => vec![count, cols, rows],
            Self::State | Self::TurnedState => vec![heads, size, size],
        }
    }

    /// The size of the matrices that lie transposed, among `count` logical tensors of `rows × cols` one below the
    /// other.
    fn transposes(
        self,
        count: usize,
        [rows, cols]: [usize; 2],
        config: &ModelConfig,
    ) -> Option<[usize; 2]> {
        match self {
            Self::Columns => Some([count.saturating_mul(rows), cols]),
            Self::ColumnStack => Some([rows, cols]),
            Self::TurnedState => Some([config.head_size; 2]),
            _ => None,
        }
    }
}

impl Row {
    /// Whether it is its one logical tensor, element by element: a writer can pass rows on one by one, and keep their
    /// format.
    pub(crate) fn is_plain(&self) -> bool {
        use Layout::{Broadcast, Flat, Heads, Rows, State};
        self.holds.len() == 1 && matches!(self.layout, Flat | Broadcast | Heads | Rows | State)
    }

    /// The tensor's shape in a file, outermost dimension first.
    ///
    /// # Errors
    /// [`Error::Weight`] when one of its logical tensors is missing, has another shape than the first, or does not fit
    /// `config`.
    pub(crate) fn shape(
        &self,
        weights: &dyn Weights,
        config: &ModelConfig,
    ) -> Result<Vec<usize>, Error> {
        let each = self.each(weights)?;
        let shape = self.layout.shape(self.holds.len(), each, config);
        let repeated = match self.layout {
            Layout::PerHead => config.head_size,
            _ => 1,
        };
        let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let held = product(&[self.holds.len(), each[0], each[1]]);
        if held.is_some() && product(&shape).and_then(|n| n.checked_mul(repeated)) == held {
            return Ok(shape);
        }
        let name = self
            .holds
            .first()
            .map_or_else(|| self.name.clone(), |&weight| weights.name(weight));
        let [rows, cols] = each;
        let problem = format!("{rows}×{cols}, where {} needs {shape:?}", self.name);
        Err(Error::Weight { name, problem })
    }

    /// The tensor's values in a file. All of them are held, so this is for those that are small.
    ///
    /// # Errors
    /// As [`shape`](Self::shape).
    pub(crate) fn gather(
        &self,
        weights: &dyn Weights,
        config: &ModelConfig,
    ) -> Result<Vec<f32>, Error> {
        let each = self.each(weights)?;
        let mut values = Vec::new();
        for &weight in &self.holds {
            // Made-up weights keep what `matrix` lends.
            weights.with_rows(weight, 0..each[0], &mut |rows| {
                let mut part = vec![0.0; rows.shape().elements().unwrap_or(0)];
                rows.format().spec().dequantize(rows.bytes(), &mut part);
                values.append(&mut part);
                Ok(())
            })?;
        }
        if self.layout == Layout::PerHead {
            let heads = values.into_iter().step_by(config.head_size.max(1));
            return Ok(heads.collect());
        }
        let Some([rows, cols]) = self.layout.transposes(self.holds.len(), each, config) else {
            return Ok(values);
        };
        let matrices = values.chunks(rows.saturating_mul(cols).max(1));
        Ok(matrices.flat_map(|m| transposed(m, cols)).collect())
    }

    /// Rows and columns of each of its logical tensors.
    fn each(&self, weights: &dyn Weights) -> Result<[usize; 2], Error> {
        let mut first = None;
        for &weight in &self.holds {
            let shape = weights.describe(weight)?.1;
            let wanted = *first.get_or_insert(shape);
            if shape != wanted {
                return Err(Error::Weight {
                    name: weights.name(weight),
                    problem: format!("{shape}, where {} needs {wanted}", self.name),
                });
            }
        }
        Ok(first.map_or([0; 2], |shape| [shape.rows.0, shape.cols.0]))
    }
}

/// The elements of the transpose of a matrix of rows of `cols`.
pub(crate) fn transposed(values: &[f32], cols: usize) -> impl Iterator<Item = f32> {
    (0..cols).flat_map(move |col| values.iter().skip(col).step_by(cols).copied())
}

/// A tensor that every layer has: what is in its name after the layer's number, what it holds, and how.
pub(super) type Entry = (&'static str, &'static [BlockWeight], Layout);

/// A tensor that a model has once.
pub(super) fn once(name: &str, weight: Weight, layout: Layout) -> Row {
    Row {
        name: name.to_owned(),
        holds: vec![weight],
        layout,
        presence: Presence::Always,
    }
}

/// `entry`'s tensor in `layer`, called `name`.
pub(super) fn in_layer(layer: usize, name: String, (_, holds, layout): Entry) -> Row {
    let optional = holds.contains(&BlockWeight::InitialState);
    Row {
        name,
        holds: holds.iter().map(|&b| Weight::Block(layer, b)).collect(),
        layout,
        presence: if optional {
            Presence::Optional
        } else {
            Presence::Always
        },
    }
}
