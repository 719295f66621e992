//! What was found out about an adapter by measuring: for each problem the cut of the work that was fastest there.
//!
//! A kernel that can share its work out in several ways asks for a [`Choice`] by its [`Problem`]. Without one it takes a
//! safe default. Who runs models notes what is asked for ([`Kernels::observed`]), times the
//! [candidates](Problem::candidates), and gives kernels the best ones ([`Kernels::tuned`]); [`Choices`] are kept in a file
//! between runs.

mod candidates;
mod file;

pub use file::VERSION;

use crate::{
    GpuMatrix, Kernels,
    ops::{CoopShape, OutputShape, SparseTuning, StepTile, StreamShape, TokenShape},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt, sync::Arc};

/// A kernel with operands of certain formats and shapes: what a choice is made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Which kernel.
    pub kernel: Tunable,
    /// The format of its matrix.
    pub format: String,
    /// Rows of the matrix; heads of a recurrence.
    pub rows: usize,
    /// Columns of the matrix; channels of a head.
    pub cols: usize,
    /// Tokens, rounded up to a power of two.
    pub tokens: usize,
}

impl Problem {
    pub(crate) fn of_matrix(kernel: Tunable, matrix: &GpuMatrix, tokens: usize) -> Self {
        Self {
            kernel,
            format: matrix.format().to_string(),
            rows: matrix.shape().rows.0,
            cols: matrix.shape().cols.0,
            tokens: tokens.next_power_of_two(),
        }
    }
}

/// The kernels that can be cut in several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tunable {
    /// [`Kernels::norm_project`] of one stack.
    NormProject,
    /// The same with a stack of low-rank pairs beside it.
    NormProjectPairs,
    /// [`Kernels::stream_linear`].
    StreamMatvec,
    /// [`Kernels::linear`] of 2 to 16 tokens, and [`Kernels::projections`] of 2 to 8.
    StreamTokens,
    /// The latter with a stack of low-rank pairs beside it.
    StreamTokensPairs,
    /// [`Kernels::sparse_linear`] of up to eight tokens.
    SparseMatvec,
    /// [`Kernels::wkv7_step`].
    Wkv7Step,
    /// [`Kernels::wkv7_output`].
    Wkv7Output,
    /// [`Kernels::channel_mix`].
    ChannelMix,
    /// [`Kernels::linear`] of many tokens, with cooperative matrices.
    Matmul,
    /// [`Kernels::sparse_linear`] of more than 4 tokens, with cooperative matrices.
    MatmulColumns,
    /// [`Kernels::half_projections`].
    HalfProjections,
    /// No kernel alone: how many tokens of a prompt go through the layers of a model together. Its rows are the products,
    /// its columns the channels, its tokens the most that suit the adapter.
    Chunk,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            format,
            rows,
            cols,
            tokens,
        } = self;
        write!(
            f,
            "{kernel:?} of {rows}×{cols} {format} for {tokens} tokens"
        )
    }
}

/// How the work of a kernel is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Choice {
    /// Of the products of one token.
    Stream(StreamShape),
    /// Of the products of several tokens.
    Tokens(TokenShape),
    /// Of a product that skips inputs.
    Sparse(SparseTuning),
    /// Of a recurrence's step.
    Step(StepTile),
    /// Of a recurrence with the output projection.
    Output(OutputShape),
    /// Of a product with cooperative matrices.
    Coop(CoopShape),
    /// Of a prompt: tokens of a chunk.
    Chunk(usize),
}

/// What was found for each problem; none where nothing measured faster than the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(HashMap<Problem, Option<Choice>>);

impl Choices {
    /// Whether `problem` was measured.
    pub fn has(&self, problem: &Problem) -> bool {
        self.0.contains_key(problem)
    }

    /// What was found for `problem`, unless that is the default.
    pub fn get(&self, problem: &Problem) -> Option<Choice> {
        self.0.get(problem).copied().flatten()
    }

    /// Sets what was found for `problem`: none for the default.
    pub fn set(&mut self, problem: Problem, choice: Option<Choice>) {
        self.0.insert(problem, choice);
    }

    /// These, with those of `others` where both know a problem.
    #[must_use]
    pub fn with(mut self, others: &Self) -> Self {
        let others = others.0.iter();
        self.0
            .extend(others.map(|(problem, choice)| (problem.clone(), *choice)));
        self
    }

    /// How many problems were measured.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The choices that kernels follow, and the problems that they were asked about.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    choices: Choices,
    /// None where nobody wants to know.
    asked: Option<Mutex<Vec<Problem>>>,
}

impl Kernels {
    /// The same kernels, following `choices`. One that an adapter or a matrix cannot follow is left out.
    #[must_use]
    pub fn tuned(&self, choices: Choices) -> Self {
        self.with_tuning(Tuning {
            choices,
            asked: None,
        })
    }

    /// The same kernels, which note what they choose for: see [`Self::asked`].
    #[must_use]
    pub fn observed(&self) -> Self {
        self.with_tuning(Tuning {
            choices: self.tuning().choices.clone(),
            asked: Some(Mutex::default()),
        })
    }

    /// The problems that [observed](Self::observed) kernels chose for since this was called last, each once.
    pub fn asked(&self) -> Vec<Problem> {
        let asked = self.tuning().asked.as_ref();
        asked
            .map(|asked| std::mem::take(&mut *asked.lock()))
            .unwrap_or_default()
    }

    /// What these kernels follow.
    pub fn choices(&self) -> &Choices {
        &self.tuning().choices
    }

    /// What to do for `problem`, if that is known.
    pub(crate) fn choice(&self, problem: Problem) -> Option<Choice> {
        let tuning: &Arc<Tuning> = self.tuning();
        let choice = tuning.choices.get(&problem);
        if let Some(asked) = &tuning.asked {
            let mut asked = asked.lock();
            if !asked.contains(&problem) {
                asked.push(problem);
            }
        }
        choice
    }

    pub(crate) fn stream_choice(&self, problem: Problem) -> Option<StreamShape> {
        match self.choice(problem)? {
            Choice::Stream(shape) => Some(shape),
            _ => None,
        }
    }

    pub(crate) fn token_choice(&self, problem: Problem) -> Option<TokenShape> {
        match self.choice(problem)? {
            Choice::Tokens(shape) => Some(shape),
            _ => None,
        }
    }

    pub(crate) fn sparse_choice(&self, problem: Problem) -> Option<SparseTuning> {
        match self.choice(problem)? {
            Choice::Sparse(tuning) => Some(tuning),
            _ => None,
        }
    }

    pub(crate) fn step_choice(&self, problem: Problem) -> Option<StepTile> {
        match self.choice(problem)? {
            Choice::Step(tile) => Some(tile),
            _ => None,
        }
    }

    pub(crate) fn output_choice(&self, problem: Problem) -> Option<OutputShape> {
        match self.choice(problem)? {
            Choice::Output(shape) => Some(shape),
            _ => None,
        }
    }

    pub(crate) fn coop_choice(&self, problem: Problem) -> Option<CoopShape> {
        match self.choice(problem)? {
            Choice::Coop(shape) => Some(shape),
            _ => None,
        }
    }
}
