//! Which kernels a step of one token a sequence launches: few where they suit, and the operations that these stand for
//! where they do not.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use rwkv_gpu::{Kind, Timing};
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, Executor, LoadOptions, Lora, LowRank, Mix, Version, Wanted,
    Weight,
};
use std::sync::Arc;
use support::{
    gpus, on_gpu,
    random_model::{Dimensions, Packing},
    span,
};

fn dimensions(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: 2,
        heads: 2,
        head_size: 16,
        ffn: 64,
        vocab: 50,
        ranks: [8, 8, 8, 8],
    }
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
struct Way {
    packing: Packing,
    sequences: u32,
    /// The matrix of every layer that an adapter changes.
    adapter: Option<B>,
}

const USUAL: Way = Way {
    packing: Packing::F16,
    sequences: 2,
    adapter: None,
};

/// The kernels of a step.
fn kernels(dimensions: &Dimensions, way: Way) -> Vec<String> {
    let model = dimensions.model(way.packing, 3);
    let gpu = &gpus()[0].gpu;
    assert!(gpu.has_timestamps(), "this test needs timestamps");
    let slots = LoadOptions::default().slots.max(way.sequences as usize);
    let mut executor = on_gpu(&model, slots, gpu, way.packing.weights_dtype());
    if let Some(changed) = way.adapter {
        let mut adapter = Adapter::new("test");
        for layer in 0..dimensions.layers {
            let weight = Weight::Block(layer, changed);
            let shape = model.weights().describe(weight).unwrap().1;
            let change = LowRank {
                rank: 1,
                a: vec![0.5; shape.cols.0].into(),
                b: vec![0.5; shape.rows.0].into(),
                scale: 1.0,
            };
            adapter.add_low_rank(weight, change);
        }
        executor.set_adapters(&[(Arc::new(adapter), 0.5)]).unwrap();
    }
    executor.set_timing(Timing::Kernels).unwrap();
    let spans = (0..way.sequences).map(|slot| span(slot, &[7], Wanted::Last));
    let batch = Batch {
        spans: spans.collect(),
    };
    executor.run(&batch).unwrap();
    let times = executor.take_times();
    let name = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    times[0].spans.iter().map(|s| name(&s.name)).collect()
}

/// Those of the second layer.
fn layer(version: Version, way: Way) -> Vec<String> {
    let one = Dimensions {
        layers: 1,
        ..dimensions(version)
    };
    let (one, two) = (kernels(&one, way).len(), kernels(&dimensions(version), way));
    let end = ["norm", "matvec"].len();
    two[one - end..two.len() - end].to_vec()
}

/// What a real GPU runs in the place of `kernel` for 2 to 16 tokens: a software adapter compiles that longer than it saves.
fn streamed(kernel: &str, way: Way) -> &str {
    let software = gpus()[0].gpu.kind() == Kind::Software;
    match kernel {
        "projections" | "matvec" | "matmul" if !software && (2..=16).contains(&way.sequences) => {
            "stream_tokens"
        }
        other => other,
    }
}

#[test]
fn of_each_version() {
    let check = |version: Version, way: Way, want: &str| {
        let want: Vec<_> = want
            .split(' ')
            .map(|kernel| streamed(kernel, way))
            .collect();
        assert_eq!(layer(version, way), want, "{version}, {way:?}");
    };
    let nine = Way {
        sequences: 9,
        ..USUAL
    };
    let adapted = |changed| Way {
        adapter: Some(changed),
        ..USUAL
    };
    let f32 = Way {
        packing: Packing::F32,
        ..USUAL
    };
    let channel_mix = "norm_shift projections sparse_matvec map";
    check(
        Version::V4,
        USUAL,
        &format!("norm_shift projections wkv4 matvec {channel_mix}"),
    );
    for version in [Version::V5_0, Version::V5_1, Version::V5_2] {
        check(
            version,
            USUAL,
            &format!("norm_shift projections wkv6_step matvec {channel_mix}"),
        );
    }
    check(
        Version::V6,
        USUAL,
        &format!("norm_shift projections mix6 projections wkv6_step matvec {channel_mix}"),
    );
    check(
        Version::V7,
        USUAL,
        "norm_shift projections wkv7_step matvec norm_shift matvec sparse_matvec",
    );
    let (time_mix7, channel_mix7) = if gpus()[0].gpu.capabilities().float_atomics {
        ("wkv7_output", "channel_mix")
    } else {
        ("wkv7_step stream_matvec", "norm_project sparse_matvec")
    };
    // One token's products stream their weights, and the norms go with them.
    let one = Way {
        sequences: 1,
        ..USUAL
    };
    check(
        Version::V7,
        one,
        &format!("norm_project {time_mix7} {channel_mix7}"),
    );
    check(
        Version::V7,
        Way {
            adapter: Some(B::AttKey),
            ..one
        },
        &format!(
            "norm_shift stream_matvec stream_matvec stream_matvec stream_matvec stream_matvec stream_matvec \
             stream_matvec matvec matvec stream_matvec matvec map keys7 wkv7 norm bonus map stream_matvec \
             {channel_mix7}"
        ),
    );
    check(
        Version::V5_2,
        one,
        "norm_shift projections wkv6_step stream_matvec norm_shift projections sparse_matvec map",
    );
    // What the groups stand for, one kernel each.
    check(
        Version::V5_2,
        nine,
        "norm_shift matmul matmul matmul matmul wkv6 norm map matmul \
         norm_shift matmul matmul matmul_columns map",
    );
    let [r, k, v, g, w] = ["matvec"; 5];
    let apart = "wkv6 norm map matvec";
    check(
        Version::V5_2,
        adapted(B::AttKey),
        &format!("norm_shift {r} {k} {v} {g} {apart} {channel_mix}"),
    );
    // The first halves of pairs that are not F16 do not go beside large matrices.
    let f32_channel_mix = channel_mix.replace("sparse_matvec", "matvec");
    check(
        Version::V6,
        f32,
        &format!(
            "norm_shift projections mix6 {r} {k} {v} {g} {w} matvec {apart} {f32_channel_mix}"
        ),
    );
    let mix = B::LoraUp(Lora::Mix(Mix::Value));
    check(
        Version::V6,
        adapted(mix),
        &format!(
            "norm_shift projections {r} map {k} map {v} map {g} map {w} map \
             {r} {k} {v} {g} {w} matvec {apart} {channel_mix}"
        ),
    );
    check(
        Version::V6,
        adapted(B::LoraUp(Lora::Decay)),
        &format!("norm_shift projections mix6 projections matvec {apart} {channel_mix}"),
    );
}
