#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
//! The tables, walked both ways: what `gather` writes, binding reads.

use super::{
    bind, detect, gguf, original,
    table::{Layout, Presence, Row},
};
use crate::files::{Checkpoint, GgufWriter};
use proptest::prelude::*;
use rwkv_kernels::Format;
use rwkv_mem::{Cols, Rows};
use rwkv_sched::{
    BlockWeight as B, InMemoryWeights, Lora, Mix, ModelConfig, Version, Weight, Weights,
};
use safetensors::{Dtype, tensor::TensorView};

/// Rows and columns of `weight`, with all ranks alike.
fn shape(weight: Weight, c: &ModelConfig, rank: usize) -> (usize, usize) {
    match weight {
        Weight::Embedding | Weight::Head => (c.vocab, c.width),
        Weight::Block(_, block) => match block {
            B::AttReceptance
            | B::AttKey
            | B::AttValue
            | B::AttGate
            | B::AttOutput
            | B::FfnReceptance => (c.width, c.width),
            B::FfnKey => (c.ffn, c.width),
            B::FfnValue => (c.width, c.ffn),
            B::LoraDown(_) => (rank, c.width),
            B::LoraUp(Lora::DeepEmbed) => (c.ffn, rank),
            B::LoraUp(_) => (c.width, rank),
            B::LoraBias(Lora::DeepEmbed) => (1, c.ffn),
            B::FfnEmbedding => (c.vocab, rank * rank),
            B::FfnEmbeddingUp => (rank * rank, c.width),
            B::InitialState => (c.width, c.head_size),
            _ => (1, c.width),
        },
        _ => (1, c.width),
    }
}

/// Random logical tensors for `rows`.
fn weights(rows: &[Row], c: &ModelConfig, rank: usize) -> InMemoryWeights {
    let mut weights = InMemoryWeights::default();
    let mut next = 0.0;
    for (&weight, row) in rows
        .iter()
        .flat_map(|row| row.holds.iter().map(move |w| (w, row)))
    {
        let (r, k) = shape(weight, c, rank);
        let per_head = row.layout == Layout::PerHead;
        let values: Vec<f32> = (0..r * k)
            .map(|i| {
                if !per_head || i % c.head_size == 0 {
                    next += 1.0;
                }
                next
            })
            .collect();
        weights
            .insert(weight, Format::F32, Rows(r), Cols(k), &values)
            .unwrap();
    }
    weights
}

fn check(version: Version, c: &ModelConfig, rank: usize, with_state: bool, in_gguf: bool) {
    let rows: Vec<Row> = if in_gguf {
        gguf::rows(c).collect()
    } else {
        original::rows(c).collect()
    };
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| with_state || row.presence != Presence::Optional)
        .collect();
    let logical = weights(&rows, c, rank);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = rows
        .iter()
        .map(|row| {
            let shape = row.shape(&logical, c).unwrap();
            let values = row.gather(&logical, c).unwrap();
            assert_eq!(
                shape.iter().product::<usize>(),
                values.len(),
                "{}",
                row.name
            );
            if row.is_plain() {
                let weight = logical.matrix(row.holds[0]).unwrap();
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                assert!(weight.bytes() == bytes, "{}", row.name);
            }
            (
                row.name.clone(),
                shape,
                values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )
        })
        .collect();
    let bytes = if in_gguf {
        let architecture = gguf::architecture(version).unwrap();
        let mut plan = GgufWriter::new();
        plan.set("general.architecture", architecture).unwrap();
        plan.set(
            &format!("{architecture}.wkv.head_size"),
            u32::try_from(c.head_size).unwrap(),
        )
        .unwrap();
        for (name, shape, _) in &tensors {
            plan.tensor(name, Format::F32, shape).unwrap();
        }
        let mut body = plan.begin(Vec::new()).unwrap();
        for (name, _, bytes) in &tensors {
            body.write(name, bytes).unwrap();
        }
        body.finish().unwrap()
    } else {
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        safetensors::serialize(views, None).unwrap()
    };
    let checkpoint = Checkpoint::from_vec("written", bytes).unwrap();
    let (naming, config) = detect(&checkpoint).unwrap();
    assert_eq!(&config, c);
    let bound = bind(&checkpoint, naming, &config, None).unwrap();
    for &weight in rows.iter().flat_map(|row| &row.holds) {
        let (got, want) = (
            bound.matrix(weight).unwrap(),
            logical.matrix(weight).unwrap(),
        );
        assert_eq!(got.shape(), want.shape(), "{weight:?}");
        assert!(got.bytes() == want.bytes(), "{version} {weight:?}");
    }
    let state = Weight::Block(0, B::InitialState);
    assert_eq!(
        bound.matrix(state).is_ok(),
        with_state && !in_gguf && version != Version::V4
    );
}

#[test]
fn misfits() {
    let c = ModelConfig {
        version: Version::V7,
        layers: 1,
        width: 6,
        head_size: 3,
        ffn: 5,
        vocab: 4,
        norm_epsilon: super::NORM_EPSILON,
        group_norm_epsilon: super::GROUP_NORM_EPSILON,
    };
    let mix = |mix| Weight::Block(0, B::AttMix(mix));
    let mut weights = InMemoryWeights::default();
    for (weight, cols) in [
        (mix(Mix::Key), 6),
        (mix(Mix::Value), 6),
        (mix(Mix::Rate), 7),
    ] {
        weights
            .insert(weight, Format::F32, Rows(1), Cols(cols), &vec![0.0; cols])
            .unwrap();
    }
    let check = |holds: &[Weight], layout, want: Result<&[usize], &str>| {
        let row = Row {
            name: "x".to_owned(),
            holds: holds.to_vec(),
            layout,
            presence: Presence::Always,
        };
        match (row.shape(&weights, &c), want) {
            (Ok(shape), Ok(want)) => assert_eq!(shape, want),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, want) => panic!("{got:?}, where {want:?} is needed"),
        }
    };
    let [key, value, rate, gate] = [Mix::Key, Mix::Value, Mix::Rate, Mix::Gate].map(mix);
    check(&[key, value], Layout::Vectors, Ok(&[2, 1, 1, 6]));
    check(&[key, rate], Layout::Vectors, Err("where x needs 1×6"));
    check(&[key], Layout::Heads, Ok(&[2, 3]));
    check(&[rate], Layout::Heads, Err("1×7, where x needs [2, 3]"));
    check(&[key], Layout::PerHead, Ok(&[2]));
    check(&[rate], Layout::PerHead, Err("1×7, where x needs [2]"));
    check(&[key], Layout::State, Err("where x needs [2, 3, 3]"));
    check(&[gate], Layout::Flat, Err("missing"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn written_is_read(layers in 1usize..4, heads in 2usize..4, size in 2usize..5, ffn in 1usize..9, vocab in 1usize..9, rank in 1usize..13, state: bool) {
        use Version::{V4, V5_0, V5_1, V5_2, V6, V7, V7a};
        for (version, in_gguf) in [(V4, false), (V5_0, false), (V5_1, false), (V5_2, false), (V6, false), (V7, false), (V7a, false), (V6, true), (V7, true)] {
            let c = ModelConfig {
                version,
                layers,
                width: heads * size,
                head_size: if version == V4 { 1 } else { size },
                ffn,
                vocab,
                norm_epsilon: super::NORM_EPSILON,
                group_norm_epsilon: super::GROUP_NORM_EPSILON,
            };
            check(version, &c, rank, state, in_gguf);
        }
    }
}
