//! Which instructions the processor has.

use std::{fmt, sync::OnceLock};

/// A set of vector instructions that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Simd {
    /// None: the twins, on any processor.
    Twins,
    /// AArch64's, 128 bits wide.
    Neon,
    /// AVX2 with FMA and F16C, 256 bits wide.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, 512 bits wide.
    Avx512,
}

impl Simd {
    /// Every level.
    pub const ALL: [Simd; 4] = [Simd::Twins, Simd::Neon, Simd::Avx2, Simd::Avx512];

    /// The widest that this processor has; asked of it once.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Simd> = OnceLock::new();
        *FOUND.get_or_init(|| {
            Self::ALL
                .into_iter()
                .rev()
                .find(|level| level.is_available())
                .unwrap_or(Self::Twins)
        })
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Twins => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => super::neon::Neon::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::avx2::Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => super::avx512::Avx512::new().is_some(),
            _ => false,
        }
    }
}

/// Returns what `$body` makes of a token `$v` of the level, where the processor has it.
macro_rules! at_level {
    ($level:expr, $v:ident => $body:expr) => {
        match $level {
            #[cfg(target_arch = "aarch64")]
            $crate::simd::Simd::Neon => {
                if let Some($v) = $crate::simd::neon::Neon::new() {
                    return $body;
                }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Simd::Avx2 => {
                if let Some($v) = $crate::simd::avx2::Avx2::new() {
                    return $body;
                }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Simd::Avx512 => {
                if let Some($v) = $crate::simd::avx512::Avx512::new() {
                    return $body;
                }
            }
            _ => {}
        }
    };
}
pub(super) use at_level;

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twins => "twins",
            Self::Neon => "NEON",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        })
    }
}
