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

use rwkv_gpu::{Capabilities, CooperativeMatrix, Kind, Limits, SubgroupSizes, Timing};
use rwkv_sched::{
    Adapter, Batch, BlockWeight as B, DeviceMemory, Executor, LoadOptions, Lora, LowRank, Mix,
    Version, Wanted, Weight,
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
    let (one, two) = (kernels(&one, way), kernels(&dimensions(version), way));
    // The last norm and the head, which may be several.
    let last = one.iter().rposition(|kernel| kernel == "norm").unwrap();
    let (one, end) = (one.len(), one.len() - last);
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
             stream_matvec {time_mix7} {channel_mix7}"
        ),
    );
    check(
        Version::V5_2,
        one,
        "norm_shift projections wkv6_step stream_matvec norm_shift projections sparse_matvec map",
    );
    // Products that no kernel makes together leave their results where one that did would.
    check(
        Version::V5_2,
        nine,
        // Streamed or with cooperative matrices, those of one input are one.
        if gpus()[0].gpu.kind() == Kind::Software {
            "norm_shift matmul matmul matmul matmul wkv6_step matmul norm_shift matmul matmul matmul_columns map"
        } else if gpus()[0].gpu.capabilities().cooperative_matrices.is_empty() {
            "norm_shift matmul wkv6_step matmul norm_shift matmul matmul_columns map"
        } else {
            "norm_shift_halves matmul_coop wkv6_step half_rows matmul_coop norm_shift_halves matmul_coop half_rows \
             matmul_coop map"
        },
    );
    let [r, k, v, g, w] = ["matvec"; 5];
    let apart = "wkv6 norm map matvec";
    check(
        Version::V5_2,
        adapted(B::AttKey),
        &format!("norm_shift {r} {k} {v} {g} wkv6_step matvec {channel_mix}"),
    );
    // The first halves of pairs that are not F16 do not go beside large matrices.
    let f32_channel_mix = channel_mix.replace("sparse_matvec", "matvec");
    check(
        Version::V6,
        f32,
        &format!(
            "norm_shift projections mix6 {r} {k} {v} {g} {w} wkv6_step matvec {f32_channel_mix}"
        ),
    );
    let mix = B::LoraUp(Lora::Mix(Mix::Value));
    check(
        Version::V6,
        adapted(mix),
        &format!(
            "norm_shift projections {r} map {k} map {v} map {g} map {w} map \
             {r} {k} {v} {g} {w} wkv6_step matvec {channel_mix}"
        ),
    );
    check(
        Version::V6,
        adapted(B::LoraUp(Lora::Decay)),
        &format!("norm_shift projections mix6 projections matvec {apart} {channel_mix}"),
    );
}

/// Kernels of a model of some layers on an adapter with cooperative matrices, which this one need not have: they are only
/// bound.
fn with_matrices(
    version: Version,
    packing: Packing,
    layers: usize,
    (tokens, spans): (usize, usize),
) -> Vec<String> {
    let model = Dimensions {
        layers,
        heads: 4,
        head_size: 32,
        ffn: 256,
        ..dimensions(version)
    }
    .model(packing, 3);
    let gpu = &gpus()[0].gpu;
    let executor = on_gpu(&model, 1, gpu, packing.weights_dtype());
    let pretending = gpu.pretending(Capabilities {
        subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
        f16: true,
        cooperative_matrices: vec![CooperativeMatrix {
            m: 16,
            n: 16,
            k: 16,
        }],
        limits: Limits {
            workgroup_bytes: 48 << 10,
            workgroup_invocations: 1024,
            ..gpu.capabilities().limits
        },
        ..gpu.capabilities().clone()
    });
    let (names, bytes) = executor.kernels_on(&pretending, tokens, spans).unwrap();
    if spans < tokens {
        let shared = DeviceMemory::activations_of(&model, 0, true);
        let estimated = DeviceMemory::activations_of(&model, tokens, true) - shared;
        let ratio = bytes as f64 / estimated as f64;
        assert!((0.7..1.3).contains(&ratio), "{version}: {ratio}");
    }
    let first = |name: &&str| name.split('/').next().unwrap_or_default().to_owned();
    // Sums of parts depend on sizes.
    let sums = ["matmul_sum", "segment_sum"];
    let all = names.iter().map(first);
    let all = all.filter(|name| !sums.contains(&name.as_str()));
    all.collect::<Vec<_>>()
}

/// Those of the second of three layers.
fn of_a_layer(version: Version, packing: Packing, batch: (usize, usize)) -> Vec<String> {
    let kernels = |layers| with_matrices(version, packing, layers, batch);
    let (two, three) = (kernels(2), kernels(3));
    // Select, where not all rows are wanted, norm, and the head with its input rounded, or not for few.
    let norm = two.iter().rposition(|name| name == "norm").unwrap();
    let end = two.len() - norm + usize::from(two[norm - 1] == "select");
    let (from, to) = (two.len() - end, three.len() - end);
    assert_eq!(two[..from], three[..from]);
    three[from..to].to_vec()
}

/// What many products read is rounded to f16 once, and by the kernel that makes it where only they read it.
#[test]
fn rounded_once() {
    let check = |version: Version, (tokens, spans): (usize, usize), want: &str| {
        let got = of_a_layer(version, Packing::F16, (tokens, spans)).join(" ");
        let want = want.replace('W', "matmul_coop").replace('H', "half_rows");
        assert_eq!(got, want, "{version}, {tokens} tokens in {spans} spans");
    };
    for (batch, up) in [((12, 12), "lora_up"), ((32, 32), "lora_up_coop")] {
        check(
            Version::V7,
            batch,
            &format!("norm_shift_halves W {up} wkv7_step H W norm_shift_halves W H W"),
        );
        check(
            Version::V5_2,
            batch,
            "norm_shift_halves W wkv6_step H W norm_shift_halves W H W map",
        );
        check(
            Version::V4,
            batch,
            "norm_shift_halves W wkv4 H W norm_shift_halves W H W map",
        );
    }
    let prompt = (600, 2);
    for version in [Version::V4, Version::V5_2] {
        let recurrence = if version == Version::V4 {
            "W wkv4 map"
        } else {
            "W wkv6 norm map"
        };
        let want = format!("norm_shift_halves {recurrence} H W norm_shift_halves W H W map");
        check(version, prompt, &want);
    }
    // Of few tokens the second halves of the pairs are products of their own.
    for (batch, pairs) in [((40, 2), "H W H W H W H W map"), (prompt, "lora_up_finish")] {
        let rest = "keys7 wkv7 gated_heads_halves W norm_shift_halves W H W";
        check(
            Version::V7,
            batch,
            &format!("norm_shift_halves W {pairs} {rest}"),
        );
    }
}

/// The first layer's value, which all layers read, is not made in the buffer of its projection, of a prompt.
#[test]
fn what_other_layers_read_is_made_alone() {
    for (batch, alone) in [((600, 2), 1), ((32, 32), 0)] {
        let products = |layers| {
            let names = with_matrices(Version::V7, Packing::F16, layers, batch);
            names.iter().filter(|name| *name == "matmul_coop").count()
        };
        let [one, two, three] = [1, 2, 3].map(products);
        // There are others from two layers on.
        assert_eq!(two - one, three - two + alone, "{batch:?}");
    }
}
