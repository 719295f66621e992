//! The logical operations.

use crate::Weight;
use rwkv_kernels::ops::{Function, Weighs};

/// Which of a layer's two shift vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShiftHalf {
    /// The time mix's.
    Att,
    /// The channel mix's.
    Ffn,
}

/// An operation. Its equation stands beside its twin in `rwkv_kernels::ops`. The layers of states are counted from the
/// first one that the graph has.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// () → x: what another part of the graph has made, or rows of a table that lies elsewhere; whoever runs this part
    /// brings it.
    Input,
    /// () → x: the table's rows that the tokens name.
    Embed {
        /// `[V, C]`.
        table: Weight,
    },
    /// x → y: norm of groups of channels; one group is a layer norm.
    Norm {
        /// `[C]`.
        weight: Weight,
        /// `[C]`.
        bias: Weight,
        /// Channels normalised together.
        group: usize,
        /// Added to the variance.
        epsilon: f32,
    },
    /// x → one value a mix, between x and the row before it; the state's vector is read, then becomes the span's last x.
    TokenShift {
        /// Whose state.
        layer: usize,
        /// Which vector of it.
        half: ShiftHalf,
        /// What the mixes weigh.
        weighs: Weighs,
        /// `[C]` each.
        mixes: Vec<Weight>,
    },
    /// x → the row before each; the state's vector is read, then becomes the span's last x.
    Previous {
        /// Whose state.
        layer: usize,
        /// Which vector of it.
        half: ShiftHalf,
    },
    /// x → y: `W x`.
    MatMul {
        /// `[out, in]`.
        weight: Weight,
    },
    /// x → y: the vector is added to each row.
    AddVector {
        /// `[C]`.
        vector: Weight,
    },
    /// x → y: element by element.
    Apply(Function),
    /// a, b → a + b.
    Add,
    /// a, b → a ⊙ b.
    Multiply,
    /// a, b, t → a + (b − a) ⊙ t.
    Lerp,
    /// a, b → a + (b − a) ⊙ w, with the vector w for every row.
    LerpVector {
        /// `[C]`.
        vector: Weight,
    },
    /// x, e → y: `x E`, where E is the token's own matrix, its rows one after the other in e.
    TokenMatMul,
    /// k, v → y; advances the state.
    Wkv4 {
        /// Whose state.
        layer: usize,
        /// `[C]`, as training left it.
        decay: Weight,
        /// `[C]`.
        bonus: Weight,
    },
    /// r, k, v → y, or r, k, v, w → y where the decay w is each token's own; advances the state.
    Wkv6 {
        /// Whose state.
        layer: usize,
        /// Channels a head.
        head_size: usize,
        /// Version 5's decay as training left it, `[C]`; none where it is an operand.
        decay: Option<Weight>,
        /// `[C]`.
        bonus: Weight,
    },
    /// k, a → replacement key, removal key.
    Keys7 {
        /// k_k, `[C]`.
        removal: Weight,
        /// k_a, `[C]`.
        replacement: Weight,
        /// Channels a head.
        head_size: usize,
    },
    /// r, w, replacement key, removal key, v, a → y; advances the state.
    Wkv7 {
        /// Whose state.
        layer: usize,
        /// Channels a head.
        head_size: usize,
    },
    /// x, r, k, v → y: `x + (Σ r ⊙ k ⊙ r_k) v`, head by head.
    Bonus {
        /// r_k, `[C]`.
        weight: Weight,
        /// Channels a head.
        head_size: usize,
    },
    /// x → the rows whose logits are wanted.
    Select,
}

impl Op {
    /// The layer whose state it reads and changes.
    pub(super) fn layer_mut(&mut self) -> Option<&mut usize> {
        match self {
            Self::TokenShift { layer, .. }
            | Self::Previous { layer, .. }
            | Self::Wkv4 { layer, .. }
            | Self::Wkv6 { layer, .. }
            | Self::Wkv7 { layer, .. } => Some(layer),
            _ => None,
        }
    }

    /// The tensors that it reads.
    pub fn weights(&self) -> Vec<Weight> {
        self.matrix().into_iter().chain(self.vectors()).collect()
    }

    /// The matrix that it reads.
    pub fn matrix(&self) -> Option<Weight> {
        match self {
            Self::Embed { table: weight } | Self::MatMul { weight } => Some(*weight),
            _ => None,
        }
    }

    /// The vectors that it reads, each as long as a row of its results.
    pub fn vectors(&self) -> Vec<Weight> {
        match self {
            Self::Norm { weight, bias, .. } => vec![*weight, *bias],
            Self::TokenShift { mixes, .. } => mixes.clone(),
            Self::AddVector { vector } | Self::LerpVector { vector } => vec![*vector],
            Self::Wkv4 { decay, bonus, .. } => vec![*decay, *bonus],
            Self::Wkv6 { decay, bonus, .. } => decay.iter().chain([bonus]).copied().collect(),
            Self::Keys7 {
                removal,
                replacement,
                ..
            } => vec![*removal, *replacement],
            Self::Bonus { weight, .. } => vec![*weight],
            _ => Vec::new(),
        }
    }
}
