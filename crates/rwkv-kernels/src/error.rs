//! What can go wrong in a kernel's use.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The GPU refused.
    #[error(transparent)]
    Gpu(#[from] rwkv_gpu::Error),

    /// A variant that the manifest does not list: a mistake in this program.
    #[error("there is no kernel variant {name}")]
    NoKernel {
        /// The variant's name.
        name: String,
    },

    /// Operands that do not fit each other: a mistake in this program or a lying model file.
    #[error("{what}: {problem}")]
    Shape {
        /// The operation or tensor.
        what: String,
        /// What does not fit.
        problem: String,
    },

    /// A weight that f16 cannot hold.
    #[error(
        "tensor {tensor} holds {value}, which is outside f16's range of ±65504; load it with --weights-dtype auto or f32"
    )]
    OutsideF16 {
        /// The tensor's name.
        tensor: String,
        /// The value.
        value: f32,
    },
}

impl Error {
    pub(crate) fn shape(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Shape {
            what: what.into(),
            problem: problem.into(),
        }
    }
}
