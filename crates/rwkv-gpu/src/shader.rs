//! A shader as data: source and reflection, made at build time.

use std::fmt;

/// How a shader uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is read and written.
    ReadWrite,
}

/// One binding of a shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShaderBinding {
    /// The bind group.
    pub group: u32,
    /// The slot in the group.
    pub binding: u32,
    /// How it is used.
    pub access: Access,
    /// The variable's name.
    pub name: &'static str,
}

/// A feature that a shader cannot run without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Subgroup operations.
    Subgroup,
    /// 16-bit floats.
    F16,
    /// Cooperative matrices.
    CooperativeMatrix,
    /// Atomic sums of f32 in storage memory.
    FloatAtomics,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subgroup => "subgroup operations",
            Self::F16 => "16-bit floats",
            Self::CooperativeMatrix => "cooperative matrices",
            Self::FloatAtomics => "atomic sums of floats",
        })
    }
}

/// A compute shader: composed WGSL and what reflection found in it. The entry point is `main`.
#[derive(Clone, Copy, Debug)]
pub struct Shader {
    /// A name that is unique in the program, such as `matvec/f16/subgroup/1`.
    pub name: &'static str,
    /// The composed WGSL.
    pub source: &'static str,
    /// Every binding, by group and slot.
    pub bindings: &'static [ShaderBinding],
    /// Invocations of a workgroup in x, y and z.
    pub workgroup_size: [u32; 3],
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Names of the `override` constants.
    pub overrides: &'static [&'static str],
    /// What the adapter must offer.
    pub requires: &'static [Requirement],
}
