//! Adapter files in every spelling, against checkpoints that were merged beforehand; and files that fit nothing.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;

use checkpoint::{
    SMALL, Small, Tensor, Tensors, gguf, llama_names, open_bytes, pairs_transposed, safetensors,
};
use proptest::prelude::*;
use rwkv_kernels::Format;
use rwkv_model::{AdapterFile, files::Checkpoint};
use rwkv_sched::{Batch, CpuExecutor, Executor, Model, SlotId, Wanted};
use std::collections::HashMap;

const RANK: usize = 3;

fn model(tensors: &Tensors) -> Model {
    let file = open_bytes("base", safetensors(tensors, Format::F32)).unwrap();
    file.model().unwrap()
}

fn logits(executor: &mut CpuExecutor) -> Vec<f32> {
    executor.reset(SlotId(0)).unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| i * i % 40).collect();
    let logits = executor
        .run(&Batch::single(SlotId(0), &tokens, Wanted::All))
        .unwrap();
    logits.rows().flatten().copied().collect()
}

fn with_adapter(model: &Model, file: &AdapterFile, strength: f32) -> Vec<f32> {
    let mut executor = CpuExecutor::new(model, 1).unwrap();
    executor
        .set_adapters(&[(file.adapter.clone(), strength)])
        .unwrap();
    logits(&mut executor)
}

#[track_caller]
fn agree(what: &str, got: &[f32], want: &[f32]) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let error =
        norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
    assert!(error < 1e-5, "{what}: error {error:.1e}");
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut tensor = Tensor::zeros(shape);
    for value in &mut tensor.values {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        *value = ((x >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.2;
    }
    tensor
}

/// `B A`.
fn product(b: &Tensor, a: &Tensor) -> Vec<f32> {
    let (rank, cols) = (a.shape[0], a.shape[1]);
    let cell = |row: usize, col: usize| {
        (0..rank)
            .map(|k| b.values[row * rank + k] * a.values[k * cols + col])
            .sum()
    };
    (0..b.shape[0])
        .flat_map(|row| (0..cols).map(move |col| (row, col)))
        .map(|(row, col)| cell(row, col))
        .collect()
}

const CHANGED: [&str; 8] = [
    "blocks.0.att.key",
    "blocks.0.att.output",
    "blocks.1.att.receptance",
    "blocks.1.att.value",
    "blocks.0.ffn.key",
    "blocks.1.ffn.value",
    "head",
    "emb",
];

/// Low-rank pairs by the weight's name.
fn pairs(original: &Tensors) -> Vec<(&'static str, Tensor, Tensor)> {
    (1..)
        .zip(CHANGED)
        .map(|(seed, stem)| {
            let shape = &original[&format!("{stem}.weight")].shape;
            let (a, b) = (
                noise(&[RANK, shape[1]], seed),
                noise(&[shape[0], RANK], seed + 99),
            );
            (stem, a, b)
        })
        .collect()
}

/// `original` with `scale · B A` added.
fn merged(original: &Tensors, scale: f32) -> Tensors {
    let mut merged = original.clone();
    for (stem, a, b) in pairs(original) {
        let tensor = merged.get_mut(&format!("{stem}.weight")).unwrap();
        for (x, d) in tensor.values.iter_mut().zip(product(&b, &a)) {
            *x += scale * d;
        }
    }
    merged
}

fn with_metadata(tensors: &Tensors, metadata: &[(&str, &str)]) -> Vec<u8> {
    let packed: Vec<_> = tensors
        .iter()
        .map(|(name, t)| {
            (
                name,
                t.shape.clone(),
                bytemuck::cast_slice(&t.values).to_vec(),
            )
        })
        .collect();
    let packed: Vec<(_, _, Vec<u8>)> = packed;
    let views = packed.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn open(bytes: Vec<u8>, config: Option<&str>, model: &Model) -> Result<AdapterFile, String> {
    let checkpoint = Checkpoint::from_vec("tuned.adapter", bytes).map_err(|e| e.to_string())?;
    let opened = AdapterFile::from_checkpoint(&checkpoint, config.map(str::as_bytes), model);
    opened.map_err(|e| e.to_string())
}

#[test]
fn spellings() {
    type Name = fn(&str, char) -> String;
    let original = SMALL.original(3);
    let model = model(&original);
    let check = |what: &str, tensors: &Tensors, metadata: &[(&str, &str)], config, scale: f32| {
        let file = open(with_metadata(tensors, metadata), config, &model).unwrap();
        assert_eq!(file.adapter.name(), "tuned.adapter");
        assert_eq!(file.adapter.weights().len(), CHANGED.len());
        let want =
            logits(&mut CpuExecutor::new(&self::model(&merged(&original, scale)), 1).unwrap());
        agree(what, &with_adapter(&model, &file, 1.0), &want);
    };
    let spelled = |name: Name| -> Tensors {
        let each = pairs(&original).into_iter();
        each.flat_map(|(stem, a, b)| [(name(stem, 'A'), a), (name(stem, 'B'), b)])
            .collect()
    };
    let plain = spelled(|stem, part| format!("{stem}.lora_{part}"));
    check("plain", &plain, &[], None, 1.0);
    for (what, name) in [
        ("weight", (|s, p| format!("{s}.lora_{p}.weight")) as Name),
        ("PEFT", |s, p| {
            format!("base_model.model.{s}.lora_{p}.weight")
        }),
        ("named", |s, p| {
            format!("base_model.model.{s}.lora_{p}.default.weight")
        }),
        ("wrapped", |s, p| format!("_forward_module.{s}.lora_{p}")),
        ("of weights", |s, p| format!("{s}.weight.lora_{p}")),
    ] {
        check(what, &spelled(name), &[], None, 1.0);
    }
    check("alpha", &plain, &[("lora_alpha", "6")], None, 2.0);
    check("alpha", &plain, &[("alpha", "1.5")], None, 0.5);
    let config = Some(r#"{"lora_alpha": 9, "r": 3}"#);
    check("config", &plain, &[], config, 3.0);
    check("both", &plain, &[("lora_alpha", "6")], config, 2.0);
    let mut alphas = plain.clone();
    for stem in CHANGED {
        let mut alpha = Tensor::zeros(&[]);
        alpha.values = vec![1.5];
        alphas.insert(format!("{stem}.alpha"), alpha);
    }
    check("tensors", &alphas, &[("lora_alpha", "6")], config, 0.5);

    let mut converted = Tensors::new();
    let mut left = Tensors::new();
    let mut embedding = plain.clone();
    for (stem, a, b) in pairs(&original) {
        converted.insert(format!("{stem}.lora.0"), a.transposed());
        converted.insert(format!("{stem}.lora.1"), b.clone());
        left.insert(format!("{stem}.weight.lora.0"), a.clone());
        left.insert(format!("{stem}.weight.lora.1"), b.clone());
        if stem == "emb" {
            embedding.insert("emb.lora_A".to_owned(), b.transposed());
            embedding.insert("emb.lora_B".to_owned(), a.transposed());
        }
    }
    check("converted", &converted, &[], None, 1.0);
    check("converted, not transposed", &left, &[], None, 1.0);
    check("lookup", &embedding, &[], None, 1.0);
    for part in ['A', 'B'] {
        let tensor = embedding.remove(&format!("emb.lora_{part}")).unwrap();
        embedding.insert(
            format!("base_model.model.emb.lora_embedding_{part}"),
            tensor,
        );
    }
    check("PEFT's lookup", &embedding, &[], None, 1.0);
}

/// A checkpoint of the same shape is an adapter of whole tensors, whichever way its pairs lie; on a GGUF base too.
#[test]
fn whole_tensors() {
    let (original, other) = (SMALL.original(4), SMALL.original(5));
    let base = model(&original);
    let want = logits(&mut CpuExecutor::new(&model(&other), 1).unwrap());
    let renamed = gguf(&llama_names(&original), Format::F32, &SMALL.metadata());
    let llama = open_bytes("base", renamed).unwrap().model().unwrap();
    // Layer 0's value residual is a dummy.
    let mut dummies = other.clone();
    for part in 0..3 {
        dummies.insert(format!("blocks.0.att.v{part}"), Tensor::zeros(&[2]));
    }
    for tensors in [&other, &pairs_transposed(&other), &dummies] {
        for base in [&base, &llama] {
            let file = open(safetensors(tensors, Format::F32), None, base).unwrap();
            assert_eq!(file.adapter.weights().len(), base.tensors().len());
            assert!(with_adapter(base, &file, 1.0) == want);
            let half = with_adapter(base, &file, 0.5);
            let mut average = original.clone();
            for (name, tensor) in &mut average {
                for (x, y) in tensor.values.iter_mut().zip(&other[name].values) {
                    *x = f32::midpoint(*x, *y);
                }
            }
            let want = logits(&mut CpuExecutor::new(&model(&average), 1).unwrap());
            agree("half", &half, &want);
        }
    }
    // A square pair lies as in checkpoints.
    let square = Small {
        ranks: [64; 4],
        ..SMALL
    };
    let (original, other) = (square.original(4), square.original(5));
    let file = open(safetensors(&other, Format::F32), None, &model(&original)).unwrap();
    let want = logits(&mut CpuExecutor::new(&model(&other), 1).unwrap());
    assert!(with_adapter(&model(&original), &file, 1.0) == want);
}

/// PEFT's folder, and a file with a configuration beside it.
#[test]
fn folders() {
    let original = SMALL.original(3);
    let base = model(&original);
    let name = |stem: &str, part| format!("base_model.model.{stem}.lora_{part}.weight");
    let tensors: Tensors = pairs(&original)
        .into_iter()
        .flat_map(|(stem, a, b)| [(name(stem, 'A'), a), (name(stem, 'B'), b)])
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    std::fs::write(&path, safetensors(&tensors, Format::F32)).unwrap();
    let strength = |path| with_adapter(&base, &AdapterFile::open(path, &base).unwrap(), 1.0);
    let plain = strength(&path);
    let config = folder.path().join("adapter_config.json");
    std::fs::write(&config, r#"{"lora_alpha": 6}"#).unwrap();
    let want = logits(&mut CpuExecutor::new(&model(&merged(&original, 2.0)), 1).unwrap());
    agree("file", &strength(&path), &want);
    agree("folder", &strength(folder.path()), &want);
    assert!(plain != want);
    std::fs::write(&config, "{").unwrap();
    let error = AdapterFile::open(&path, &base).unwrap_err().to_string();
    assert!(
        error.contains("adapter_config.json") && !error.contains('\n'),
        "{error}"
    );
    let missing = folder.path().join("nothing");
    let error = AdapterFile::open(&missing, &base).unwrap_err().to_string();
    assert!(error.contains("no such file"), "{error}");
}

#[track_caller]
fn refuses(base: &Model, tensors: &Tensors, want: &str) {
    let error = open(safetensors(tensors, Format::F32), None, base).unwrap_err();
    assert!(error.starts_with("tuned.adapter: "), "{error}");
    assert!(
        error.contains(want) && !error.contains('\n'),
        "{error}, not {want}"
    );
}

#[test]
fn refused() {
    let original = SMALL.original(6);
    let base = model(&original);
    let good: Tensors = pairs(&original)
        .into_iter()
        .flat_map(|(stem, a, b)| [(format!("{stem}.lora_A"), a), (format!("{stem}.lora_B"), b)])
        .collect();
    let with = |name: &str, tensor: Option<Tensor>| {
        let mut tensors = good.clone();
        match tensor {
            Some(tensor) => tensors.insert(name.to_owned(), tensor),
            None => tensors.remove(name),
        };
        tensors
    };
    let zeros = |shape: &[usize]| Some(Tensor::zeros(shape));
    let c = SMALL.width;
    let key = "blocks.0.att.key";
    for (name, shape, want) in [
        (
            "blocks.0.att.kay.weight",
            vec![c, c],
            "tensor \"blocks.0.att.kay.weight\" changes nothing",
        ),
        (
            "two\nlines",
            vec![1],
            "tensor \"two\\nlines\" changes nothing",
        ),
        (
            "blocks.0.att.w1.lora_A",
            vec![3, c],
            "\"blocks.0.att.w1.…\" changes nothing",
        ),
        (
            "blocks.0.att.key.lora_magnitude_vector",
            vec![c],
            "changes nothing",
        ),
        ("blocks.0.att.key.lora_B.bias", vec![c], "changes nothing"),
        ("blocks.9.att.key.weight", vec![c, c], "changes nothing"),
        (
            "blocks.0.att.key.weight",
            vec![c, c + 1],
            "is 64×65, where the model's is 64×64",
        ),
        (
            "blocks.1.att.w1",
            vec![c, 9],
            "is 9×64, where the model's is 7×64",
        ),
        (
            "blocks.1.att.w0",
            vec![c + 1],
            "is 1×65, where the model's is 1×64",
        ),
        ("blocks.1.att.w1", vec![c], "where a matrix is needed"),
        (
            "blocks.0.att.key.lora_A",
            vec![3, c + 1],
            "A is 3×65 and B is 64×3",
        ),
        (
            "blocks.0.att.key.lora_A",
            vec![2, c],
            "A is 2×64 and B is 64×3",
        ),
        (
            "blocks.0.att.key.lora_A",
            vec![c, 3],
            "A is 64×3 and B is 64×3",
        ),
        (
            "blocks.0.att.key.lora_A",
            vec![c],
            "where a matrix is needed",
        ),
        (
            "blocks.0.att.key.lora_B",
            vec![c, 3, 1],
            "where a matrix is needed",
        ),
        (
            "blocks.0.att.key.lora_A.weight",
            vec![3, c],
            "two tensors for",
        ),
        (
            "model.blocks.0.att.key.lora_A",
            vec![3, c],
            "two tensors for",
        ),
        (
            "blocks.0.att.key.alpha",
            vec![2],
            "its alpha has 2 elements",
        ),
        ("blocks.9.att.key.lora_A", vec![3, c], "matrix B is missing"),
        (
            "blocks.0.att.gate.lora_B",
            vec![c, 3],
            "matrix A is missing",
        ),
        (
            "blocks.0.att.time_state",
            vec![2, 32, 31],
            "where [2, 32, 32] is needed",
        ),
        (
            "blocks.0.att.time_state",
            vec![2, 32, 32],
            "no tensor blocks.1.att.time_state",
        ),
    ] {
        refuses(&base, &with(name, zeros(&shape)), want);
    }
    for layer in ["9", "18446744073709551615", "99999999999999999999999"] {
        let mut tensors = with(&format!("blocks.{layer}.att.key.lora_A"), zeros(&[3, c]));
        tensors.insert(
            format!("blocks.{layer}.att.key.lora_B"),
            Tensor::zeros(&[c, 3]),
        );
        let error = open(safetensors(&tensors, Format::F32), None, &base).unwrap_err();
        assert!(
            error.contains("no such matrix") || error.contains("changes nothing"),
            "{error}"
        );
    }
    refuses(
        &base,
        &with(&format!("{key}.lora_B"), None),
        "matrix B is missing",
    );
    refuses(&base, &Tensors::new(), "it holds no tensors");
    let mut bad = Tensor::zeros(&[3, c]);
    bad.values[7] = f32::NAN;
    refuses(
        &base,
        &with(&format!("{key}.lora_A"), Some(bad)),
        "holds NaN",
    );
    let mut two = with("a", zeros(&[1]));
    two.insert("b".to_owned(), Tensor::zeros(&[1]));
    refuses(&base, &two, "tensor \"a\" and 1 more");

    let file =
        |metadata: &[(&str, &str)], config| open(with_metadata(&good, metadata), config, &base);
    let error = file(&[("lora_alpha", "inf")], None).unwrap_err();
    assert!(error.contains("its scale is inf"), "{error}");
    let error = file(&[], Some("{\"peft_type\": \"a\\nb\"}")).unwrap_err();
    assert!(
        error.contains("a\\\\nb") && !error.contains('\n'),
        "{error}"
    );
    let renamed = llama_names(&original);
    let error = open(gguf(&renamed, Format::F32, &SMALL.metadata()), None, &base).unwrap_err();
    assert!(error.contains("a GGUF file"), "{error}");
}

/// A tuned state beside low-rank pairs, or alone.
#[test]
fn states() {
    let original = SMALL.original(6);
    let base = model(&original);
    let mut tensors = Tensors::new();
    for layer in 0..2 {
        tensors.insert(
            format!("blocks.{layer}.att.time_state"),
            noise(&[2, 32, 32], layer + 1),
        );
    }
    let alone = open(safetensors(&tensors, Format::F32), None, &base).unwrap();
    let state = alone.initial_state.unwrap();
    // [H, key, value] in safetensors.
    assert!((state.wkv[1][32] - tensors["blocks.1.att.time_state"].values[1]).abs() < 1e-9);
    assert!(alone.adapter.is_empty());
    for (stem, a, b) in pairs(&original) {
        tensors.insert(format!("base_model.model.{stem}.lora_A.weight"), a);
        tensors.insert(format!("base_model.model.{stem}.lora_B.weight"), b);
    }
    let both = open(safetensors(&tensors, Format::F32), None, &base).unwrap();
    assert_eq!(both.initial_state.as_ref(), Some(&state));
    assert_eq!(both.adapter.weights().len(), CHANGED.len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Random names and shapes out of the pieces of right ones: an adapter that can be used, or one line.
    #[test]
    fn hostile_files(parts in prop::collection::vec((
        prop::sample::select(vec!["", "base_model.model.", "model.", "module."]),
        prop::sample::select(vec!["blocks.0.att.key", "blocks.1.att.w1", "emb", "head", "blocks.7.ffn.key", "blocks..att", "ln_out", "blocks.0.att.time_state", "", "blocks.0.att.r_k"]),
        prop::sample::select(vec!["", ".weight", ".bias", ".lora_A", ".lora_B", ".lora.0", ".lora.1", ".alpha", ".lora_A.weight", ".lora_embedding_A", ".lora_embedding_B", ".default.weight"]),
        prop::collection::vec(prop::sample::select(vec![0usize, 1, 3, 7, 32, 40, 64]), 0..4),
    ), 0..6)) {
        let base = model(&SMALL.original(6));
        let mut tensors = Tensors::new();
        for (before, stem, after, shape) in parts {
            tensors.insert(format!("{before}{stem}{after}"), Tensor::zeros(&shape));
        }
        match open(with_metadata(&tensors, &[]), None, &base) {
            Ok(file) => drop(with_adapter(&base, &file, 1.0)),
            Err(error) => prop_assert!(!error.contains('\n') && error.starts_with("tuned.adapter: "), "{error}"),
        }
    }
}
