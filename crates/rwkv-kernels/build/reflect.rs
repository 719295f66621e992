//! Validating WGSL with naga and reading off what the host must know.

use naga::{
    AddressSpace, StorageAccess,
    proc::Layouter,
    valid::{Capabilities, ValidationFlags, Validator},
};

/// A binding of a shader; `access` is a variant's name of `rwkv_gpu::Access`.
pub(crate) struct Binding {
    pub(crate) group: u32,
    pub(crate) slot: u32,
    pub(crate) access: &'static str,
    pub(crate) name: String,
}

/// What the host must know of a shader; `requires` has variants' names of `rwkv_gpu::Requirement`.
pub(crate) struct Reflection {
    pub(crate) bindings: Vec<Binding>,
    pub(crate) workgroup_size: [u32; 3],
    pub(crate) workgroup_bytes: u32,
    pub(crate) overrides: Vec<String>,
    pub(crate) requires: Vec<&'static str>,
}

/// What a shader may need beyond plain WGSL.
const OPTIONAL: [(Capabilities, &str); 4] = [
    (Capabilities::SUBGROUP, "Subgroup"),
    (Capabilities::SHADER_FLOAT16, "F16"),
    (Capabilities::COOPERATIVE_MATRIX, "CooperativeMatrix"),
    (Capabilities::SHADER_FLOAT32_ATOMIC, "FloatAtomics"),
];

/// Parses, validates and reflects `source`, whose entry point must be called `main`.
pub(crate) fn reflect(source: &str) -> Result<Reflection, String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let validate = |capabilities| {
        let checked = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
        checked.map_err(|e| e.emit_to_string(source))
    };
    // `unpack2x16float` is in WebGPU's core; naga counts it apart because some GLES drivers lack it.
    let core = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let plain = OPTIONAL.iter().fold(core, |all, (c, _)| all | *c);
    validate(plain)?;
    let requires = OPTIONAL
        .iter()
        .filter(|(c, _)| validate(plain.difference(*c)).is_err())
        .map(|(_, name)| *name)
        .collect();
    let entry = module
        .entry_points
        .iter()
        .find(|e| e.name == "main")
        .ok_or("no entry point `main`")?;
    let mut layouter = Layouter::default();
    layouter
        .update(module.to_ctx())
        .map_err(|e| e.to_string())?;
    let mut bindings = Vec::new();
    let mut workgroup_bytes = 0;
    for (_, variable) in module.global_variables.iter() {
        let access = match variable.space {
            AddressSpace::WorkGroup => {
                workgroup_bytes += layouter[variable.ty].size;
                continue;
            }
            AddressSpace::Uniform => "Uniform",
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
                "ReadWrite"
            }
            AddressSpace::Storage { .. } => "Read",
            _ => continue,
        };
        let slot = variable
            .binding
            .ok_or("a buffer without @group and @binding")?;
        let name = variable.name.clone().unwrap_or_default();
        bindings.push(Binding {
            group: slot.group,
            slot: slot.binding,
            access,
            name,
        });
    }
    bindings.sort_by_key(|b| (b.group, b.slot));
    let overrides = module
        .overrides
        .iter()
        .filter_map(|(_, o)| o.name.clone())
        .collect();
    Ok(Reflection {
        bindings,
        workgroup_size: entry.workgroup_size,
        workgroup_bytes,
        overrides,
        requires,
    })
}
