//! Whether `unpack2x16float` keeps subnormal numbers, which Vulkan and WGSL let drivers take for zero. No property of an
//! adapter tells, so a kernel tries.

use half::f16;
use std::sync::mpsc;

/// Halves, two a word, of which most are subnormal: the smallest, the largest, and others of both signs.
const HALVES: [[u16; 2]; 4] = [
    [0x0001, 0x8001],
    [0x03ff, 0x83ff],
    [0x0200, 0x0155],
    [0x3c00, 0x0400],
];

/// Whether kernels on `device` keep them; not, where the kernel does not run.
pub(crate) fn halves_kept(device: &wgpu::Device, queue: &wgpu::Queue) -> bool {
    let want: Vec<u8> = HALVES
        .iter()
        .flatten()
        .flat_map(|half| f16::from_bits(*half).to_f32().to_le_bytes())
        .collect();
    unpacked(device, queue).is_some_and(|made| made == want)
}

/// The bytes that a kernel makes of [`HALVES`].
fn unpacked(device: &wgpu::Device, queue: &wgpu::Queue) -> Option<Vec<u8>> {
    use wgpu::BufferUsages as U;
    let given: Vec<u8> = HALVES
        .iter()
        .flatten()
        .flat_map(|half| half.to_le_bytes())
        .collect();
    let buffer = |usage, size: usize| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("subnormal halves"),
            size: size as u64,
            usage,
            mapped_at_creation: false,
        })
    };
    let halves = buffer(U::STORAGE | U::COPY_DST, given.len());
    let floats = buffer(U::STORAGE | U::COPY_SRC, 2 * given.len());
    let read = buffer(U::MAP_READ | U::COPY_DST, 2 * given.len());
    queue.write_buffer(&halves, 0, &given);
    let module = device.create_shader_module(wgpu::include_wgsl!("subnormal.wgsl"));
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("subnormal halves"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("subnormal halves"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry {
                binding: 0,
                resource: halves.as_entire_binding(),
            },
            wgpu::BindGroupEntry {
                binding: 1,
                resource: floats.as_entire_binding(),
            },
        ],
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(1, 1, 1);
    drop(pass);
    encoder.copy_buffer_to_buffer(&floats, 0, &read, 0, floats.size());
    let submission = queue.submit([encoder.finish()]);
    let (done, mapped) = mpsc::channel();
    read.map_async(wgpu::MapMode::Read, .., move |result| {
        // Nobody waits any more where the wait failed.
        let _ = done.send(result);
    });
    let wait = wgpu::PollType::Wait {
        submission_index: Some(submission),
        timeout: None,
    };
    device.poll(wait).ok()?;
    mapped.try_recv().ok()?.ok()?;
    let bytes = read.get_mapped_range(..).ok()?.to_vec();
    read.unmap();
    Some(bytes)
}
