//! What an adapter offers, after hiding what the user asks to hide.

use crate::Error;
use std::str::FromStr;

/// The sizes a subgroup can have on an adapter, in invocations. A kernel reads the real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubgroupSizes {
    /// The smallest.
    pub min: u32,
    /// The largest.
    pub max: u32,
}

/// One matrix shape that cooperative-matrix instructions take: `C[m,n] += A[m,k] · B[k,n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CooperativeMatrix {
    /// Rows of A and C.
    pub m: u32,
    /// Columns of B and C.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
}

/// The limits that kernels and allocation look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one storage binding.
    pub binding_bytes: u64,
    /// Bytes of one buffer.
    pub buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Invocations a workgroup.
    pub workgroup_invocations: u32,
    /// Workgroups a dimension of a dispatch.
    pub workgroups: u32,
    /// Storage buffers that a kernel binds at most.
    pub storage_buffers: u32,
    /// Bytes that an offset into a storage or uniform buffer must be a multiple of.
    pub offset_alignment: u64,
}

/// What an opened adapter offers to kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts, one a feature"
)]
pub struct Capabilities {
    /// Subgroup operations, if any.
    pub subgroups: Option<SubgroupSizes>,
    /// 16-bit floats in arithmetic.
    pub f16: bool,
    /// Atomic sums of f32 in storage memory.
    pub float_atomics: bool,
    /// f16 × f16 → f32 cooperative matrices.
    pub cooperative_matrices: Vec<CooperativeMatrix>,
    /// Timestamps around passes.
    pub timestamps: bool,
    /// Compiled pipelines can be kept on disk.
    pub pipeline_cache: bool,
    /// Buffers can be mapped and used by kernels at once (unified memory).
    pub mappable_buffers: bool,
    /// Limits.
    pub limits: Limits,
}

/// Features to pretend that an adapter lacks: `RWKV_HIDE=subgroup,f16,coop,float-atomics,subnormal-halves`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts, one a feature"
)]
pub struct Hidden {
    /// Hide subgroup operations.
    pub subgroup: bool,
    /// Hide 16-bit floats, and the cooperative matrices made of them.
    pub f16: bool,
    /// Hide cooperative matrices.
    pub coop: bool,
    /// Hide atomic sums of f32.
    pub float_atomics: bool,
    /// Hide that subnormal 16-bit floats are kept when they are unpacked.
    pub subnormal_halves: bool,
}

impl FromStr for Hidden {
    type Err = Error;

    fn from_str(list: &str) -> Result<Self, Error> {
        let mut hidden = Self::default();
        for name in list.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match name {
                "subgroup" => hidden.subgroup = true,
                "f16" => hidden.f16 = true,
                "coop" => hidden.coop = true,
                "float-atomics" => hidden.float_atomics = true,
                "subnormal-halves" => hidden.subnormal_halves = true,
                _ => {
                    return Err(Error::BadSetting {
                        name: "RWKV_HIDE",
                        value: list.to_owned(),
                        problem: format!(
                            "`{name}` is none of subgroup, f16, coop, float-atomics, subnormal-halves"
                        ),
                    });
                }
            }
        }
        Ok(hidden)
    }
}

impl Hidden {
    /// Every useful feature that `adapter` has and that is not hidden.
    pub(crate) fn features(self, adapter: &wgpu::Adapter) -> wgpu::Features {
        use wgpu::Features as F;
        let mut wanted = F::SUBGROUP
            | F::SHADER_F16
            | F::SHADER_FLOAT32_ATOMIC
            | F::TIMESTAMP_QUERY
            | F::TIMESTAMP_QUERY_INSIDE_PASSES
            | F::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | F::IMMEDIATES
            | F::PIPELINE_CACHE
            | F::MAPPABLE_PRIMARY_BUFFERS
            | F::EXPERIMENTAL_COOPERATIVE_MATRIX;
        wanted.set(F::SUBGROUP, !self.subgroup);
        wanted.set(F::SHADER_F16, !self.f16);
        wanted.set(F::SHADER_FLOAT32_ATOMIC, !self.float_atomics);
        wanted.set(F::EXPERIMENTAL_COOPERATIVE_MATRIX, !self.coop && !self.f16);
        adapter.features() & wanted
    }
}

impl Capabilities {
    /// What `adapter` offers when opened with `features`.
    pub(crate) fn of(adapter: &wgpu::Adapter, features: wgpu::Features) -> Self {
        use wgpu::Features as F;
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let cooperative_matrices = if features.contains(F::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            use wgpu::CooperativeScalarType as S;
            adapter
                .cooperative_matrix_properties()
                .iter()
                .filter(|p| p.ab_type == S::F16 && p.cr_type == S::F32)
                .map(|p| CooperativeMatrix {
                    m: p.m_size,
                    n: p.n_size,
                    k: p.k_size,
                })
                .collect()
        } else {
            Vec::new()
        };
        Self {
            subgroups: features.contains(F::SUBGROUP).then_some(SubgroupSizes {
                min: info.subgroup_min_size,
                max: info.subgroup_max_size,
            }),
            f16: features.contains(F::SHADER_F16),
            float_atomics: features.contains(F::SHADER_FLOAT32_ATOMIC),
            cooperative_matrices,
            timestamps: features.contains(F::TIMESTAMP_QUERY),
            pipeline_cache: features.contains(F::PIPELINE_CACHE),
            mappable_buffers: features.contains(F::MAPPABLE_PRIMARY_BUFFERS),
            limits: Limits {
                binding_bytes: limits.max_storage_buffer_binding_size,
                buffer_bytes: limits.max_buffer_size,
                workgroup_bytes: limits.max_compute_workgroup_storage_size,
                workgroup_invocations: limits.max_compute_invocations_per_workgroup,
                workgroups: limits.max_compute_workgroups_per_dimension,
                storage_buffers: limits.max_storage_buffers_per_shader_stage,
                offset_alignment: u64::from(
                    limits
                        .min_storage_buffer_offset_alignment
                        .max(limits.min_uniform_buffer_offset_alignment),
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hide_list() {
        #[track_caller]
        fn check(list: &str, want: Option<[bool; 5]>) {
            let got = list.parse::<Hidden>().ok().map(|h| {
                [
                    h.subgroup,
                    h.f16,
                    h.coop,
                    h.float_atomics,
                    h.subnormal_halves,
                ]
            });
            assert_eq!(got, want, "{list}");
        }
        check("", Some([false; 5]));
        check("subgroup", Some([true, false, false, false, false]));
        check(" f16 , coop,", Some([false, true, true, false, false]));
        check("float-atomics", Some([false, false, false, true, false]));
        check("subnormal-halves", Some([false, false, false, false, true]));
        check("subgroups", None);
    }
}
