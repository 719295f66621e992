#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use rwkv_sched::{
    Affine, Batch, BlockWeight as B, CpuExecutor, Executor, InMemoryWeights, Model, SlotId, Wanted,
};
use std::sync::Arc;

fn spec(text: &str) -> SyntheticSpec {
    text.parse().unwrap()
}

#[test]
fn specs() {
    let check = |text: &str, want: &str| assert_eq!(spec(text).to_string(), want, "{text}");
    check(
        "v7:12x768",
        "v7:12x768:vocab=65536,head=64,ffn=3072,zeros=0.5,seed=0",
    );
    check(
        "v6:24x2048",
        "v6:24x2048:vocab=65536,head=64,ffn=7168,zeros=0.5,seed=0",
    );
    check(
        "v5:3x64",
        "v5.2:3x64:vocab=65536,head=64,ffn=224,zeros=0.5,seed=0",
    );
    check(
        "v4:12x768:vocab=50277",
        "v4:12x768:vocab=50277,head=1,ffn=3072,zeros=0.5,seed=0",
    );
    check(
        "v7a:1x32:seed=18446744073709551615,head=32,zeros=0.9,ffn=100,vocab=3",
        "v7a:1x32:vocab=3,head=32,ffn=100,zeros=0.9,seed=18446744073709551615",
    );
    let refused = |text: &str, part: &str| {
        let error = text.parse::<SyntheticSpec>().unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    };
    refused("", "begins with a version");
    refused("v8:1x64", "begins with a version");
    for size in [
        "v7",
        "v7:",
        "v7:12",
        "v7:12x",
        "v7:0x64",
        "v7:+1x64",
        "v7:1x99999999999999999999",
    ] {
        refused(size, "LAYERSxWIDTH");
    }
    for pairs in [
        "v7:1x64:",
        "v7:1x64:vocab",
        "v7:1x64:vocab=0",
        "v7:1x64:depth=3",
        "v7:1x64:seed=-1",
    ] {
        refused(pairs, "the keys are");
    }
    for zeros in ["0", "1", "NaN", "x"] {
        refused(&format!("v7:1x64:zeros={zeros}"), "a share from");
    }
    refused("v7:1x100", "heads of 64 in 100");
    refused("v7:2000x64", "more than 1024");
}

proptest! {
    #[test]
    fn any_text(text in "v[4-8](a|\\.[0-9])?(:[0-9x]{0,9})?(:[a-z=,.0-9]{0,20})?") {
        if let Ok(spec) = text.parse::<SyntheticSpec>() {
            let again: SyntheticSpec = spec.to_string().parse().unwrap();
            prop_assert_eq!(again, spec);
        }
    }

    /// However rows are asked for, they are the same.
    #[test]
    fn rows_on_their_own(first in 0usize..120, count in 0usize..50, seed: u64) {
        let weights = SyntheticWeights::new(&spec(&format!("v7:1x320:vocab=100,seed={seed}")));
        let mut slab = Vec::new();
        weights
            .with_rows(Weight::Embedding, first..first + count, &mut |rows| {
                slab = rows.bytes().to_vec();
                Ok(())
            })
            .unwrap();
        let whole = weights.matrix(Weight::Embedding).unwrap();
        prop_assert_eq!(slab.as_slice(), whole.packed_rows(first, count));
        weights
            .with_rows(Weight::Embedding, first..first + count, &mut |rows| {
                assert_eq!(rows.bytes(), slab);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn seeds_and_tensors_differ() {
    let bytes = |text: &str, weight| {
        let weights = SyntheticWeights::new(&spec(text));
        weights.matrix(weight).unwrap().bytes().to_vec()
    };
    let key = |layer| Weight::Block(layer, B::AttKey);
    let one = bytes("v7:2x64:vocab=9", key(0));
    assert!(one == bytes("v7:2x64:vocab=50", key(0)));
    assert!(one != bytes("v7:2x64:vocab=9", key(1)));
    assert!(one != bytes("v7:2x64:vocab=9,seed=1", key(0)));
}

/// The largest and the root mean square of a run's logits.
fn run(model: &Model) -> Vec<Vec<f32>> {
    let mut executor = CpuExecutor::new(model, 1).unwrap();
    let vocab = u32::try_from(model.config().vocab).unwrap();
    let tokens: Vec<u32> = (0..60).map(|i| i * 7919 % vocab).collect();
    let logits = executor
        .run(&Batch::single(SlotId(0), &tokens, Wanted::All))
        .unwrap();
    logits.rows().map(<[f32]>::to_vec).collect()
}

#[test]
fn runs_are_tame() {
    for text in ["v7:3x128:vocab=300", "v7:8x64:vocab=100,zeros=0.9"] {
        let weights = SyntheticWeights::new(&spec(text));
        let model = Model::new(weights.config().clone(), Arc::new(weights)).unwrap();
        let logits = run(&model);
        let all: Vec<f32> = logits.concat();
        let size = (all.iter().map(|x| x * x).sum::<f32>() / all.len() as f32).sqrt();
        assert!((0.5..2.0).contains(&size), "{text}: logits of {size}");
    }
}

/// The share of zeros in a real run. The channel mix is made visible: its value matrix becomes a large identity, which
/// drowns the residual, and the head an identity, so that the logits are the normed activations.
#[test]
fn zeros_are_as_asked() {
    const WIDTH: usize = 256;
    for zeros in [0.2, 0.5, 0.8, 0.95] {
        let text = format!("v7:1x{WIDTH}:vocab={WIDTH},ffn={WIDTH},zeros={zeros}");
        let made = SyntheticWeights::new(&spec(&text));
        let mut weights = InMemoryWeights::default();
        for weight in made.tensors.keys() {
            let shape = made.describe(*weight).unwrap().1;
            let mut values = made.vector(*weight, shape.elements().unwrap()).unwrap();
            let identity = match weight {
                Weight::Block(0, B::FfnValue) => Some(1e8),
                Weight::Head => Some(1.0),
                Weight::OutputNorm(Affine::Weight) => {
                    values.fill(1.0);
                    None
                }
                Weight::OutputNorm(Affine::Bias) => {
                    values.fill(0.0);
                    None
                }
                _ => None,
            };
            if let Some(scale) = identity {
                for (at, value) in values.iter_mut().enumerate() {
                    *value = if at % (WIDTH + 1) == 0 { scale } else { 0.0 };
                }
            }
            weights
                .insert(*weight, Format::F32, shape.rows, shape.cols, &values)
                .unwrap();
        }
        let model = Model::new(made.config().clone(), Arc::new(weights)).unwrap();
        let logits = run(&model);
        let count = |row: &Vec<f32>| {
            let least = row.iter().copied().fold(f32::INFINITY, f32::min);
            row.iter().filter(|x| **x - least < 1e-4).count()
        };
        let share = logits.iter().map(count).sum::<usize>() as f64 / (logits.len() * WIDTH) as f64;
        assert!(
            (share - zeros).abs() < 0.04,
            "{share} where {zeros} was asked for"
        );
    }
}
