//! Every kernel variant within WebGPU's default limits, which every adapter guarantees, but for those that are taken only
//! where an adapter has more.

#![allow(clippy::panic, reason = "tests")]

use naga::AddressSpace;
use rwkv_kernels::shaders;

/// `maxStorageBuffersPerShaderStage` of WebGPU's default limits.
const STORAGE_BUFFERS: usize = 8;
/// How kernels begin and end of which variants ask an adapter for more (`Limits::storage_buffers`), and how many at most.
const MORE: [(&str, &str, usize); 4] = [
    ("wkv7_output/", "", 13),
    ("channel_mix/", "", 14),
    ("norm_project/", "", 11),
    ("norm_shift_halves/", "/slices", 11),
];
/// `maxUniformBuffersPerShaderStage`.
const UNIFORM_BUFFERS: usize = 12;
/// `maxBindGroups`.
const GROUPS: u32 = 4;

#[test]
fn bindings() {
    assert!(!shaders::all().is_empty());
    for variant in shaders::all() {
        let (name, source) = (variant.shader.name, variant.shader.source);
        let module = naga::front::wgsl::parse_str(source)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)));
        let count = |kind: fn(AddressSpace) -> bool| {
            let all = module.global_variables.iter();
            all.filter(|(_, variable)| kind(variable.space)).count()
        };
        let storage = count(|space| matches!(space, AddressSpace::Storage { .. }));
        let uniform = count(|space| space == AddressSpace::Uniform);
        let more = MORE
            .iter()
            .find(|(begin, end, _)| name.starts_with(begin) && name.ends_with(end));
        let most = more.map_or(STORAGE_BUFFERS, |(.., most)| *most);
        assert!(
            storage <= most,
            "{name} binds {storage} storage buffers, where {most} are sure"
        );
        assert!(
            uniform <= UNIFORM_BUFFERS,
            "{name} binds {uniform} uniform buffers"
        );
        let mut all = module.global_variables.iter();
        assert!(
            all.all(|(_, v)| v.binding.is_none_or(|b| b.group < GROUPS)),
            "{name} has more than {GROUPS} bind groups"
        );
    }
}
