//! Every kernel variant through the naga back ends that its manifest row names, so that a kernel that only works on
//! Vulkan is caught without other hardware.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use naga::{
    ArraySize, Module, ShaderStage, Type, TypeInner,
    back::{hlsl, msl, pipeline_constants::process_overrides, spv, wgsl},
    proc::IndexableLength,
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};
use rwkv_gpu::{Access, Requirement};
use rwkv_kernels::shaders::{self, Variant};
use std::num::NonZeroU32;

#[test]
fn every_variant() {
    assert!(!shaders::all().is_empty());
    for variant in shaders::all() {
        let name = variant.shader.name;
        let module = naga::front::wgsl::parse_str(variant.shader.source)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(variant.shader.source)));
        let info = validate(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!variant.backends.is_empty(), "{name} names no back end");
        for backend in variant.backends {
            if let Err(problem) = translate(variant, &module, &info, backend) {
                panic!("{name} to {backend}: {problem}");
            }
        }
    }
}

/// WebGPU promises 8 storage buffers, which is all that products of few tokens in any format may need.
#[test]
fn storage_buffers() {
    let of = |v: &&Variant| {
        ["matvec/", "projections/", "stream_tokens/"]
            .iter()
            .any(|k| v.shader.name.starts_with(k))
    };
    for variant in shaders::all().iter().filter(of) {
        let bindings = variant.shader.bindings.iter();
        let buffers = bindings.filter(|b| b.access != Access::Uniform).count();
        assert!(buffers <= 8, "{}: {buffers}", variant.shader.name);
    }
}

#[test]
fn unknown_back_end() {
    let variant = &shaders::all()[0];
    let module = naga::front::wgsl::parse_str(variant.shader.source).unwrap();
    let info = validate(&module).unwrap();
    let problem = translate(variant, &module, &info, "glsl").unwrap_err();
    assert_eq!(problem, "there is no such back end");
}

fn translate(
    variant: &Variant,
    module: &Module,
    info: &ModuleInfo,
    backend: &str,
) -> Result<(), String> {
    let requires = |r| variant.shader.requires.contains(&r);
    let overrides = variant.shader.overrides.iter();
    let constants = overrides.map(|name| ((*name).to_owned(), 1.0)).collect();
    let entry = Some((ShaderStage::Compute, "main"));
    let (module, info) =
        process_overrides(module, info, entry, &constants).map_err(|e| e.to_string())?;
    match backend {
        "spirv" => {
            let options = spv::Options {
                lang_version: (1, 3),
                ..Default::default()
            };
            spv::write_vec(&module, &info, &options, None).map_err(|e| e.to_string())?;
        }
        "msl" => {
            // Metal has SIMD-group functions from 2.1 on, and all that naga uses for subgroups from 2.4 on.
            let lang_version = if requires(Requirement::CooperativeMatrix) {
                (3, 0)
            } else if requires(Requirement::Subgroup) {
                (2, 4)
            } else {
                (2, 0)
            };
            let options = msl::Options {
                lang_version,
                ..Default::default()
            };
            let (text, entries) =
                msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                    .map_err(|e| e.to_string())?;
            if text.is_empty() || entries.entry_point_names.iter().any(Result::is_err) {
                return Err(format!("{:?}", entries.entry_point_names));
            }
        }
        "hlsl" => {
            // Wave operations came with shader model 6.0, 16-bit types with 6.2.
            let shader_model = if requires(Requirement::F16) {
                hlsl::ShaderModel::V6_2
            } else if requires(Requirement::Subgroup) {
                hlsl::ShaderModel::V6_0
            } else {
                hlsl::ShaderModel::V5_1
            };
            let options = hlsl::Options {
                shader_model,
                ..Default::default()
            };
            let pipeline = hlsl::PipelineOptions::default();
            let mut text = String::new();
            let entries = hlsl::Writer::new(&mut text, &options, &pipeline)
                .write(&module, &info, None)
                .map_err(|e| e.to_string())?;
            if text.is_empty() || entries.entry_point_names.iter().any(Result::is_err) {
                return Err(format!("{:?}", entries.entry_point_names));
            }
        }
        "wgsl" => {
            let module = sized(&module);
            let info = validate(&module)?;
            let text = wgsl::write_string(&module, &info, wgsl::WriterFlags::empty())
                .map_err(|e| e.to_string())?;
            let again = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
            validate(&again)?;
        }
        _ => return Err("there is no such back end".to_owned()),
    }
    Ok(())
}

/// The module with its arrays' sizes as numbers: naga 30 writes an array that an override sizes without the type of its
/// elements. (The other back ends look the override up.)
fn sized(module: &Module) -> Module {
    let mut numbered = module.clone();
    for (number, (handle, ty)) in module.types.iter().enumerate() {
        if let TypeInner::Array { base, size, stride } = ty.inner
            && matches!(size, ArraySize::Pending(_))
            && let Ok(IndexableLength::Known(length)) = size.resolve(module.to_ctx())
            && let Some(length) = NonZeroU32::new(length)
        {
            let inner = TypeInner::Array {
                base,
                size: ArraySize::Constant(length),
                stride,
            };
            // Types must differ, and several sizes may be the same number.
            let name = Some(format!("Sized{number}"));
            numbered.types.replace(handle, Type { name, inner });
        }
    }
    numbered
}

fn validate(module: &Module) -> Result<ModuleInfo, String> {
    Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(module)
        .map_err(|e| e.into_inner().to_string())
}
