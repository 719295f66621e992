//! The table of kernel variants that `build/main.rs` makes from `wgsl/`.

use crate::{Error, Result};
use rwkv_gpu::{Access, Requirement, Shader, ShaderBinding};

/// A kernel variant, composed, validated and reflected.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The shader; its name is `KERNEL/VALUE/VALUE…`, as in `wgsl/manifest.toml`.
    pub shader: Shader,
    /// The naga back ends that must be able to translate it.
    pub backends: &'static [&'static str],
}

static VARIANTS: &[Variant] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// Every variant, sorted by name.
pub fn all() -> &'static [Variant] {
    VARIANTS
}

/// The shader called `name`.
///
/// # Errors
/// [`Error::NoKernel`] when there is none.
pub(crate) fn find(name: &str) -> Result<&'static Shader> {
    match VARIANTS.binary_search_by(|v| v.shader.name.cmp(name)) {
        Ok(at) => Ok(&VARIANTS[at].shader),
        Err(_) => Err(Error::NoKernel {
            name: name.to_owned(),
        }),
    }
}
