//! Functions of one value.

/// A function that is applied element by element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Function {
    /// `x`.
    #[default]
    Identity,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `max(x, 0)²`.
    SquaredRelu,
    /// RWKV-7's decay, `exp(-e^(-1/2) σ(x))`, in (0.545, 1) (Peng et al. 2025, eq. 12).
    Decay7,
    /// The decay of RWKV-5 and RWKV-6, `exp(-exp(x))`, in (0, 1) (Peng et al. 2024, "Eagle and Finch", section 4).
    Decay6,
    /// `x σ(x)`, the gate of RWKV-5.1 to RWKV-6.
    Silu,
}

/// e^(-1/2).
const INVERSE_ROOT_E: f32 = 0.606_530_66;

impl Function {
    /// The function's value at `x`.
    pub fn apply(self, x: f32) -> f32 {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Sigmoid => sigmoid(x),
            Self::SquaredRelu => x.max(0.0) * x.max(0.0),
            Self::Decay7 => (-INVERSE_ROOT_E * sigmoid(x)).exp(),
            Self::Decay6 => (-x.exp()).exp(),
            Self::Silu => x * sigmoid(x),
        }
    }

    /// The kernels' constant ACTIVATION.
    pub(crate) fn constant(self) -> (&'static str, f64) {
        ("ACTIVATION", f64::from(self.code()))
    }

    /// Its number in `wgsl/activation.wgsl`.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Tanh => 1,
            Self::Sigmoid => 2,
            Self::SquaredRelu => 3,
            Self::Decay7 => 4,
            Self::Decay6 => 5,
            Self::Silu => 6,
        }
    }
}
