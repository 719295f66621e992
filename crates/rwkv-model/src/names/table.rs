//! How logical tensors lie in the tensors of a file: one row a tensor of the file. Reading and writing walk the same
//! rows.

use rwkv_sched::{BlockWeight, ModelConfig, Weight, Weights};

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
            Self::Rows => vec![count * rows, cols],
            Self::Columns => vec![cols, count * rows],
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
            Self::Columns => Some([count * rows, cols]),
            Self::ColumnStack => Some([rows, cols]),
            Self::TurnedState => Some([config.head_size; 2]),
            _ => None,
        }
    }
}

impl Row {
    /// Whether its rows are those of its one logical tensor, so that a writer can pass them on one by one.
    #[allow(dead_code, reason = "for writers of checkpoints")]
    pub(crate) fn is_plain(&self) -> bool {
        self.holds.len() == 1 && matches!(self.layout, Layout::Rows | Layout::Flat)
    }

    /// The tensor as a file has it: its shape, outermost dimension first, and its values.
    ///
    /// # Errors
    /// [`rwkv_sched::Error::Weight`] when one of its logical tensors is missing, or has another shape than the first.
    #[allow(dead_code, reason = "for writers of checkpoints")]
    pub(crate) fn gather(
        &self,
        weights: &dyn Weights,
        config: &ModelConfig,
    ) -> Result<(Vec<usize>, Vec<f32>), rwkv_sched::Error> {
        let mut each = [0; 2];
        let mut values = Vec::new();
        for (index, &weight) in self.holds.iter().enumerate() {
            let shape = weights.matrix(weight)?.shape();
            if index == 0 {
                each = [shape.rows.0, shape.cols.0];
            }
            values.extend(weights.vector(weight, each[0] * each[1])?);
        }
        let count = self.holds.len();
        if self.layout == Layout::PerHead {
            values = values
                .into_iter()
                .step_by(config.head_size.max(1))
                .collect();
        }
        if let Some([rows, cols]) = self.layout.transposes(count, each, config) {
            values = values
                .chunks(rows.saturating_mul(cols).max(1))
                .flat_map(|matrix| {
                    (0..cols).flat_map(move |col| matrix.iter().skip(col).step_by(cols.max(1)))
                })
                .copied()
                .collect();
        }
        Ok((self.layout.shape(count, each, config), values))
    }
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
