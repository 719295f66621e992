//! Parameter blocks: one a content, apart from each other, and holding what was asked for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use proptest::prelude::*;
use rwkv_gpu::{Access, Binding, BufferKind, Dispatch, Shader, ShaderBinding};
use rwkv_mem::{ParamBlock, ParamCache};
use support::{contents, gpu};

/// Where a block lies.
fn range(block: &ParamBlock) -> (rwkv_gpu::Buffer, u64, u64) {
    let Binding {
        buffer,
        offset,
        size,
    } = block.binding();
    (buffer.clone(), offset, offset + size.unwrap())
}

#[track_caller]
fn check_apart(blocks: &[ParamBlock]) {
    let alignment = gpu().capabilities().limits.offset_alignment;
    let ranges: Vec<_> = blocks.iter().map(range).collect();
    for (i, (buffer, start, end)) in ranges.iter().enumerate() {
        assert!(start.is_multiple_of(alignment) && *end <= buffer.size());
        for (other, first, last) in &ranges[..i] {
            let apart = buffer != other || last <= start || end <= first;
            assert!(apart, "{start}..{end} meets {first}..{last}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Sizes of 4 to 64 bytes in any order; equal bytes, padded to 16 as uniform structs are, share a block.
    #[test]
    fn one_block_a_content(contents in prop::collection::vec((0u32..6, 1usize..=16), 1..120)) {
        let cache = ParamCache::new(gpu());
        prop_assert!(cache.is_empty());
        let mut seen: Vec<(Vec<u32>, ParamBlock)> = Vec::new();
        for (value, words) in contents {
            let mut params = [0u32; 16];
            params[..words].fill(value);
            // A type a size: 4, 16, 32 and 64 bytes.
            let (size, block) = match words {
                1 => (4, cache.block(&params[0])),
                2..=4 => (4, cache.block::<[u32; 4]>(&params[..4].try_into().unwrap())),
                5..=8 => (8, cache.block::<[u32; 8]>(&params[..8].try_into().unwrap())),
                _ => (16, cache.block(&params)),
            };
            let (block, key) = (block.unwrap(), params[..size].to_vec());
            match seen.iter().find(|(k, _)| *k == key) {
                Some((_, first)) => prop_assert_eq!(range(first), range(&block)),
                None => seen.push((key, block)),
            }
            prop_assert_eq!(cache.len(), seen.len());
        }
        let blocks: Vec<_> = seen.into_iter().map(|(_, block)| block).collect();
        check_apart(&blocks);
    }
}

const SLOTS: [ShaderBinding; 2] = [
    ShaderBinding {
        group: 0,
        binding: 0,
        access: Access::Uniform,
        name: "params",
    },
    ShaderBinding {
        group: 0,
        binding: 1,
        access: Access::ReadWrite,
        name: "y",
    },
];

/// Copies the parameters to where they can be read.
static COPY: Shader = Shader {
    name: "copy-parameters",
    source: "@group(0) @binding(0) var<uniform> params: array<vec4<u32>, 3>;
    @group(0) @binding(1) var<storage, read_write> y: array<vec4<u32>>;
    @compute @workgroup_size(3)
    fn main(@builtin(local_invocation_index) i: u32) {
        y[i] = params[i];
    }",
    bindings: &SLOTS,
    workgroup_size: [3, 1, 1],
    workgroup_bytes: 0,
    overrides: &[],
    requires: &[],
};

/// More blocks than one arena holds, made by several threads at once, read back by a kernel.
#[test]
fn blocks_hold_their_parameters() {
    let (gpu, cache) = (gpu(), ParamCache::new(gpu()));
    let words = [0u32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    let params = |i: u32| words.map(|word| i * 100 + word);
    let count = 600;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..count).for_each(|i| drop(cache.block(&params(i)).unwrap())));
        }
    });
    assert_eq!(cache.len(), count as usize);
    let blocks: Vec<_> = (0..count)
        .map(|i| cache.block(&params(i)).unwrap())
        .collect();
    assert_eq!(cache.len(), count as usize);
    check_apart(&blocks);

    let pipeline = gpu.pipeline(&COPY, &[]).unwrap();
    let step = gpu.capabilities().limits.offset_alignment.max(64);
    let bytes = step * u64::from(count);
    let y = gpu.buffer(BufferKind::Storage, "copies", bytes).unwrap();
    let mut recorder = gpu.recorder("copy parameters");
    for (i, block) in (0u64..).zip(&blocks) {
        let copy = Binding {
            buffer: &y,
            offset: i * step,
            size: Some(48),
        };
        let group = gpu.bind(&pipeline, 0, &[block.binding(), copy]).unwrap();
        recorder.dispatch([&Dispatch {
            pipeline: pipeline.clone(),
            groups: vec![group],
            grid: [1, 1, 1],
        }]);
    }
    gpu.wait(&recorder.submit().unwrap()).unwrap();
    let got = contents(gpu, &y, 0, bytes);
    for (i, got) in (0u32..).zip(got.chunks_exact(usize::try_from(step).unwrap())) {
        assert_eq!(&got[..48], bytemuck::bytes_of(&params(i)), "block {i}");
    }
}

/// Contents that never come again: what is kept is bounded, and blocks that were handed out hold what they held.
#[test]
fn what_is_kept_is_bounded() {
    let (gpu, cache) = (gpu(), ParamCache::new(gpu()));
    let first: Vec<_> = (0..50u32).map(|i| cache.block(&[i; 12]).unwrap()).collect();
    let mut most = 0;
    for i in 100..20_000u32 {
        let block = cache.block(&[i; 12]).unwrap();
        assert_eq!(range(&block), range(&cache.block(&[i; 12]).unwrap()));
        most = most.max(cache.len());
    }
    assert!((1000..=4096).contains(&most), "{most}");
    check_apart(&first);
    let pipeline = gpu.pipeline(&COPY, &[]).unwrap();
    for (i, block) in (0u32..).zip(&first) {
        let y = gpu.buffer(BufferKind::Storage, "copy", 48).unwrap();
        let bindings = [block.binding(), Binding::from(&y)];
        let group = gpu.bind(&pipeline, 0, &bindings).unwrap();
        let mut recorder = gpu.recorder("copy parameters");
        recorder.dispatch([&Dispatch {
            pipeline: pipeline.clone(),
            groups: vec![group],
            grid: [1, 1, 1],
        }]);
        gpu.wait(&recorder.submit().unwrap()).unwrap();
        let got = contents(gpu, &y, 0, 48);
        assert_eq!(got, bytemuck::bytes_of(&[i; 12]), "block {i}");
    }
}

/// Blocks that are asked for again and again stay, whatever else comes once; all are made anew only where what is kept
/// lies scattered.
#[test]
fn what_is_used_stays() {
    let cache = ParamCache::new(gpu());
    let often = || (0..100u32).for_each(|i| drop(cache.block(&[i; 4]).unwrap()));
    often();
    for once in 1000..31_000u32 {
        cache.block(&[once; 4]).unwrap();
        if once % 100 == 0 {
            often();
        }
    }
    let counts = cache.counts();
    // Each of the 30,000 is made, and the 100 at first and after the one time that all are forgotten.
    assert!((30_100..=30_300).contains(&counts.misses), "{counts:?}");
    assert!(counts.rate().unwrap() > 0.49);
}
