//! Compiling shaders and binding buffers to them.
//!
//! Buffers can be bound to a pipeline that is not compiled: a program first resolves all that it will launch, and then
//! compiles what that needs side by side.

use crate::{
    Access, Buffer, Error, Gpu, Requirement, Result, Shader, ShaderBinding,
    pipeline_cache::{PipelineCache, pipeline_id},
};
use dashmap::Entry;
use parking_lot::Mutex;
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

/// A shader with values of its `override` constants, its bind-group layouts and, once it is compiled, what the driver
/// made of it.
#[derive(Debug)]
pub struct Pipeline {
    shader: &'static Shader,
    constants: Vec<(&'static str, f64)>,
    groups: Vec<wgpu::BindGroupLayout>,
    compiled: OnceLock<wgpu::ComputePipeline>,
    /// Held by the thread that compiles it; others wait for that one.
    compiling: Mutex<()>,
}

/// What distinguishes one compiled pipeline from another: the shader and the bits of its constants.
pub(crate) type PipelineKey = (&'static str, Vec<(&'static str, u64)>);

impl Pipeline {
    /// The shader it was compiled from.
    pub fn shader(&self) -> &'static Shader {
        self.shader
    }

    /// None before it is compiled.
    pub(crate) fn raw(&self) -> Option<&wgpu::ComputePipeline> {
        self.compiled.get()
    }
}

/// A range of a buffer, bound to a slot.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte; a multiple of the adapter's offset alignment.
    pub offset: u64,
    /// Bytes, or the rest of the buffer.
    pub size: Option<u64>,
}

impl<'a> From<&'a Buffer> for Binding<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self {
            buffer,
            offset: 0,
            size: None,
        }
    }
}

/// Buffers bound to the slots of one bind group. Cloning shares it; it keeps its buffers.
#[derive(Clone, Debug)]
pub struct BindGroup {
    raw: Option<wgpu::BindGroup>,
    _buffers: Arc<[Buffer]>,
}

impl BindGroup {
    /// None where a buffer is only [planned](Gpu::planning).
    pub(crate) fn raw(&self) -> Option<&wgpu::BindGroup> {
        self.raw.as_ref()
    }
}

impl Gpu {
    /// The pipeline of `shader` with these values of its `override` constants, compiled on first use.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the adapter lacks what the shader requires; [`Error::Rejected`] with the
    /// compiler's words.
    pub fn pipeline(
        &self,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
    ) -> Result<Arc<Pipeline>> {
        let pipeline = self.declare(shader, constants)?;
        self.compile(&pipeline)?;
        Ok(pipeline)
    }

    /// As [`pipeline`](Self::pipeline), but to be compiled by [`compile`](Self::compile) before it is recorded. Buffers
    /// can be bound to it already.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the adapter lacks what the shader requires.
    pub fn declare(
        &self,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
    ) -> Result<Arc<Pipeline>> {
        let bits = constants
            .iter()
            .map(|(name, value)| (*name, value.to_bits()));
        let key = (shader.name, bits.collect());
        if let Some(found) = self.pipelines().get(&key) {
            self.counters().pipelines.hit();
            return Ok(found.clone());
        }
        self.check_supported(shader)?;
        let groups = self.scoped(&|| format!("kernel {}", shader.name), |device| {
            layouts(device, shader)
        })?;
        match self.pipelines().entry(key) {
            // Another thread was faster.
            Entry::Occupied(found) => {
                self.counters().pipelines.hit();
                Ok(found.get().clone())
            }
            Entry::Vacant(place) => {
                self.counters().pipelines.miss();
                let pipeline = Arc::new(Pipeline {
                    shader,
                    constants: constants.to_vec(),
                    groups,
                    compiled: OnceLock::new(),
                    compiling: Mutex::new(()),
                });
                Ok(place.insert(pipeline).clone())
            }
        }
    }

    /// Compiles `pipeline`, unless it is or another thread is at it already: that one is waited for.
    ///
    /// # Errors
    /// [`Error::Rejected`] with the compiler's words.
    pub fn compile(&self, pipeline: &Pipeline) -> Result<()> {
        if pipeline.compiled.get().is_some() {
            return Ok(());
        }
        let _compiling = pipeline.compiling.lock();
        if pipeline.compiled.get().is_some() {
            return Ok(());
        }
        let Pipeline {
            shader, constants, ..
        } = pipeline;
        let start = Instant::now();
        let made = self.scoped(&|| format!("kernel {}", shader.name), |device| {
            let module = self.module(device, shader);
            let parsed = start.elapsed();
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(shader.name),
                bind_group_layouts: &pipeline.groups.iter().map(Some).collect::<Vec<_>>(),
                immediate_size: 0,
            });
            let made = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants,
                    zero_initialize_workgroup_memory: self.checks(),
                },
                cache: self.pipeline_cache().map(PipelineCache::raw),
            });
            tracing::trace!(
                name = shader.name,
                parse_us = parsed.as_micros(),
                compile_us = start.elapsed().saturating_sub(parsed).as_micros(),
                "compiled"
            );
            made
        })?;
        if let Some(cache) = self.pipeline_cache()
            && cache.compiled(pipeline_id(shader, constants, self.checks()))
        {
            self.counters().pipeline_kept();
        }
        // Nobody else sets it: the lock is held.
        let _ = pipeline.compiled.set(made);
        Ok(())
    }

    /// `shader`, parsed and validated.
    fn module(&self, device: &wgpu::Device, shader: &Shader) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.name),
            source: wgpu::ShaderSource::Wgsl(shader.source.into()),
        };
        if self.checks() {
            return device.create_shader_module(descriptor);
        }
        // SAFETY: our shaders have no unbounded loop, divide by sizes that the host checks to be positive, and index
        // only within the sizes that the host binds; tests run every kernel with checks as well.
        unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }

    fn check_supported(&self, shader: &Shader) -> Result<()> {
        let have = self.capabilities();
        for requirement in shader.requires {
            let there = match requirement {
                Requirement::Subgroup => have.subgroups.is_some(),
                Requirement::F16 => have.f16,
                Requirement::CooperativeMatrix => !have.cooperative_matrices.is_empty(),
                Requirement::FloatAtomics => have.float_atomics,
            };
            if !there {
                return Err(Error::Unsupported {
                    shader: shader.name.to_owned(),
                    feature: match requirement {
                        Requirement::Subgroup => "subgroup operations",
                        Requirement::F16 => "16-bit floats",
                        Requirement::CooperativeMatrix => "cooperative matrices",
                        Requirement::FloatAtomics => "atomic sums of floats",
                    },
                    adapter: self.name().to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Binds `bindings` to the slots of `group` of `pipeline`, in the order of the shader's slots.
    ///
    /// # Errors
    /// [`Error::Rejected`] when number, size, alignment or usage do not fit; nobody looks at the usage of what is only
    /// [planned](Self::planning).
    pub fn bind(
        &self,
        pipeline: &Pipeline,
        group: u32,
        bindings: &[Binding<'_>],
    ) -> Result<BindGroup> {
        let shader = pipeline.shader;
        let slots: Vec<_> = shader
            .bindings
            .iter()
            .filter(|b| b.group == group)
            .collect();
        let layout = pipeline
            .groups
            .get(group as usize)
            .filter(|_| slots.len() == bindings.len());
        let Some(layout) = layout else {
            return Err(Error::Rejected {
                what: format!("the bindings of kernel {}", shader.name),
                message: format!(
                    "group {group} has {} slots, {} buffers were given",
                    slots.len(),
                    bindings.len()
                ),
            });
        };
        let limits = &self.capabilities().limits;
        let (allowed, alignment) = (limits.binding_bytes, limits.offset_alignment.max(4));
        for (slot, binding) in slots.iter().zip(bindings) {
            let bytes = binding
                .size
                .unwrap_or(binding.buffer.size().saturating_sub(binding.offset));
            if bytes > allowed {
                return Err(Error::OverLimit {
                    what: format!("binding `{}` of kernel {}", slot.name, shader.name),
                    bytes,
                    limit: "largest binding",
                    allowed,
                });
            }
            let (offset, size) = (binding.offset, binding.buffer.size());
            let end = offset.checked_add(bytes);
            if !offset.is_multiple_of(alignment) || end.is_none_or(|end| end > size) {
                return Err(Error::Rejected {
                    what: format!("binding `{}` of kernel {}", slot.name, shader.name),
                    message: format!(
                        "{bytes} bytes at {offset} of a buffer of {size}, where offsets are multiples of {alignment}"
                    ),
                });
            }
        }
        let planned = bindings.iter().any(|b| b.buffer.is_planned());
        let raw = if planned {
            None
        } else {
            Some(self.bind_group(shader, layout, &slots, bindings)?)
        };
        let buffers = bindings.iter().map(|b| b.buffer.clone()).collect();
        Ok(BindGroup {
            raw,
            _buffers: buffers,
        })
    }

    fn bind_group(
        &self,
        shader: &Shader,
        layout: &wgpu::BindGroupLayout,
        slots: &[&ShaderBinding],
        bindings: &[Binding<'_>],
    ) -> Result<wgpu::BindGroup> {
        let all = slots.iter().zip(bindings).map(|(slot, b)| {
            Ok(wgpu::BindGroupEntry {
                binding: slot.binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: b.buffer.raw()?,
                    offset: b.offset,
                    size: b.size.and_then(std::num::NonZeroU64::new),
                }),
            })
        });
        let entries = all.collect::<Result<Vec<_>>>()?;
        let what = || format!("the bindings of kernel {}", shader.name);
        self.scoped(&what, |device| {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(shader.name),
                layout,
                entries: &entries,
            })
        })
    }
}

/// Explicit layouts from reflection: pipelines of one shader family then share bind groups.
fn layouts(device: &wgpu::Device, shader: &Shader) -> Vec<wgpu::BindGroupLayout> {
    let groups = shader
        .bindings
        .iter()
        .map(|b| b.group + 1)
        .max()
        .unwrap_or(0);
    (0..groups)
        .map(|group| {
            let entries: Vec<_> = shader
                .bindings
                .iter()
                .filter(|b| b.group == group)
                .map(|b| wgpu::BindGroupLayoutEntry {
                    binding: b.binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: match b.access {
                            Access::Uniform => wgpu::BufferBindingType::Uniform,
                            Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                            Access::ReadWrite => {
                                wgpu::BufferBindingType::Storage { read_only: false }
                            }
                        },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                })
                .collect();
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(shader.name),
                entries: &entries,
            })
        })
        .collect()
}
