//! Every dialect of file binds to the same logical tensors, of every version.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/rename.rs"]
mod rename;

use checkpoint::{
    Metadata, Small, Tensor, Tensors, gguf, llama_names, open_bytes, pairs_transposed, safetensors,
    safetensors_with,
};
use proptest::prelude::*;
use rename::{Logical, converted, flash_linear_attention, hugging_face_6, llama_6, logical};
use rwkv_kernels::Format;
use rwkv_model::{
    ModelFile, OpenOptions,
    files::{Checkpoint, Field},
};
use rwkv_sched::{Affine, BlockWeight, Mix, Version, Weight};
use std::{collections::HashMap, path::Path};

const SAFE: [Version; 7] = [
    Version::V4,
    Version::V5_0,
    Version::V5_1,
    Version::V5_2,
    Version::V6,
    Version::V7,
    Version::V7a,
];

type Expected = HashMap<Weight, Logical>;

/// `bytes` hold a model of `version` whose logical tensors are `want`.
#[track_caller]
fn check(what: &str, bytes: Vec<u8>, version: Version, want: &Expected) -> ModelFile {
    let file = open_bytes(what, bytes).unwrap();
    same(what, &file, version, want);
    file
}

#[track_caller]
fn same(what: &str, file: &ModelFile, version: Version, want: &Expected) {
    assert_eq!(file.config().version, version, "{what}");
    let weights = file.weights().unwrap();
    for (weight, want) in want {
        let shape = weights.matrix(*weight).unwrap().shape();
        assert_eq!(
            (shape.rows.0, shape.cols.0),
            (want.rows, want.cols),
            "{what}, {weight:?}"
        );
        let got = weights.vector(*weight, want.values.len()).unwrap();
        assert!(got == want.values, "{what}, {weight:?}: other values");
    }
}

/// Metadata of a version 6, as llama.cpp's converter writes it.
fn metadata_6(small: Small, rescale: usize) -> Metadata {
    let mut metadata: Metadata = small
        .metadata()
        .into_iter()
        .map(|(key, value)| (key.replace("rwkv7.", "rwkv6."), value))
        .collect();
    metadata.insert("general.architecture".to_owned(), Field::from("rwkv6"));
    metadata.insert(
        "rwkv6.rescale_every_n_layers".to_owned(),
        Field::U32(rescale as u32),
    );
    metadata
}

fn without_state(tensors: &Tensors) -> Tensors {
    let mut tensors = tensors.clone();
    tensors.retain(|name, _| !name.ends_with("time_state"));
    tensors
}

fn small() -> impl Strategy<Value = Small> {
    let ranks = prop::array::uniform4(prop_oneof![1usize..40, Just(32), Just(64)]);
    (1usize..4, 1usize..3, 1usize..4, 1usize..60, ranks).prop_map(
        |(layers, heads, ffn, vocab, ranks)| Small {
            layers,
            width: 32 * heads,
            head_size: if heads == 1 { 16 } else { 32 },
            ffn: 32 * ffn,
            vocab,
            ranks,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn original_and_converted(small in small(), seed: u64) {
        for version in SAFE {
            let original = small.of(version, seed);
            let want = logical(version, &original);
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let file = check("original", safetensors(&original, format), version, &want);
                let c = file.config();
                let head_size = if version == Version::V4 { 1 } else { small.head_size };
                prop_assert_eq!([c.layers, c.width, c.head_size, c.ffn, c.vocab], [small.layers, small.width, head_size, small.ffn, small.vocab]);
            }
            let stateless = without_state(&original);
            let stateless_want = logical(version, &stateless);
            let file = check("no state", safetensors(&stateless, Format::F32), version, &stateless_want);
            let state = Weight::Block(0, BlockWeight::InitialState);
            prop_assert!(file.weights().unwrap().matrix(state).is_err());
            // Where every pair of version 7 is square, only the caller can tell.
            let pairs = if small.layers > 1 { vec![0, 1, 2, 3] } else { vec![0, 1, 3] };
            let square = pairs.into_iter().all(|pair| small.ranks[pair] == small.width);
            if square && matches!(version, Version::V7 | Version::V7a) || version == Version::V5_0 {
                continue;
            }
            let now = if version == Version::V5_1 { Version::V5_2 } else { version };
            check(".st", safetensors(&converted(version, &original), Format::F16), now, &want);
            // Ai00's converter leaves version 7's pairs as they are, and its states are files of their own.
            check("pairs", safetensors(&pairs_transposed(&stateless), Format::F16), version, &stateless_want);
        }
    }

    #[test]
    fn hugging_face(small in small(), seed: u64, fused: bool) {
        let seven = without_state(&small.of(Version::V7, seed));
        let mut want = logical(Version::V7, &seven);
        let renamed = flash_linear_attention(&seven, fused);
        let file = check("fla", safetensors_with(&renamed, Format::Bf16, &[("config.norm_eps", "2e-5")]), Version::V7, &want);
        prop_assert!((file.config().norm_epsilon - 2e-5).abs() < 1e-12);
        prop_assert!((file.config().group_norm_epsilon - 2e-5 * small.head_size as f32).abs() < 1e-9);
        for layers in ["blocks", "layers"] {
            for att in ["attention", "attention.time_mixer", "self_attn", "self_attn.time_mixer"] {
                let renamed = rename::blocks(&seven, layers, att);
                check(att, safetensors(&renamed, Format::F32), Version::V7, &want);
            }
        }
        // Tied, and without the biases of layer norms.
        let mut bare = renamed.clone();
        bare.remove("lm_head.weight");
        bare.retain(|name, _| !name.ends_with("norm.bias") || name.ends_with("g_norm.bias"));
        want.insert(Weight::Head, want[&Weight::Embedding].clone());
        for (weight, tensor) in &mut want {
            if matches!(weight, Weight::EmbeddingNorm(Affine::Bias) | Weight::OutputNorm(Affine::Bias)
                | Weight::Block(_, BlockWeight::AttNorm(Affine::Bias) | BlockWeight::FfnNorm(Affine::Bias)))
            {
                tensor.values.fill(0.0);
            }
        }
        let said = [("config.norm_bias", "false"), ("config.tie_word_embeddings", "true")];
        check("bare fla", safetensors_with(&bare, Format::F16, &said), Version::V7, &want);

        let six = without_state(&small.of(Version::V6, seed));
        let want = logical(Version::V6, &six);
        check("version 6", safetensors(&hugging_face_6(&six), Format::F32), Version::V6, &want);
    }

    #[test]
    fn llama(small in small(), seed: u64, rescale in 0usize..3, fused: bool) {
        let seven = without_state(&small.of(Version::V7, seed));
        let want = logical(Version::V7, &seven);
        let six = without_state(&small.of(Version::V6, seed));
        let want_6 = logical(Version::V6, &six);
        for format in [Format::F32, Format::F16, Format::Bf16, Format::Q8_0] {
            check("version 7", gguf(&llama_names(&seven), format, &small.metadata()), Version::V7, &want);
            let renamed = llama_6(&six, rescale, fused);
            check("version 6", gguf(&renamed, format, &metadata_6(small, rescale)), Version::V6, &want_6);
        }
    }
}

const TWO: Small = Small {
    layers: 2,
    width: 64,
    head_size: 32,
    ffn: 96,
    vocab: 40,
    ranks: [7, 5, 3, 33],
};

/// What the caller says of square pairs and of the group norm counts.
#[test]
fn options() {
    let small = Small {
        ranks: [64; 4],
        ..TWO
    };
    let original = small.of(Version::V7, 3);
    let want = logical(Version::V7, &original);
    let open = |tensors: &Tensors, turned| {
        let options = OpenOptions {
            turned_pairs: turned,
            group_norm_epsilon: Some(1e-3),
        };
        let checkpoint = Checkpoint::from_vec("square", safetensors(tensors, Format::F32)).unwrap();
        ModelFile::from_checkpoint_with(checkpoint, None, options).unwrap()
    };
    let turned = converted(Version::V7, &original);
    for (tensors, said) in [
        (&original, None),
        (&original, Some(false)),
        (&turned, Some(true)),
    ] {
        let file = open(tensors, said);
        same("square", &file, Version::V7, &want);
        assert!((file.config().group_norm_epsilon - 1e-3).abs() < 1e-9);
    }
    // Pairs that tell by their shape are believed whatever the caller says.
    let original = TWO.of(Version::V7, 3);
    same(
        "not square",
        &open(&original, Some(true)),
        Version::V7,
        &logical(Version::V7, &original),
    );
    // Version 6's mixes are square where 5 R = C; its names tell.
    let small = Small {
        width: 160,
        ffn: 64,
        ranks: [32, 160, 1, 1],
        ..TWO
    };
    let original = small.of(Version::V6, 4);
    let want = logical(Version::V6, &original);
    check(
        "square 6",
        safetensors(&original, Format::F32),
        Version::V6,
        &want,
    );
    check(
        "square .st",
        safetensors(&converted(Version::V6, &original), Format::F32),
        Version::V6,
        &want,
    );
}

/// The bonus by its name, where the name has meant two things.
#[test]
fn bonus() {
    let rename = |tensors: &Tensors, from: &str, to: &str| -> Tensors {
        tensors
            .iter()
            .map(|(name, tensor)| (name.replace(from, to), tensor.clone()))
            .collect()
    };
    for (version, from, to) in [
        (Version::V5_0, "time_first", "time_faaaa"),
        (Version::V5_1, "time_faaaa", "time_first"),
    ] {
        let original = rename(&TWO.of(version, 5), from, to);
        check(
            "renamed",
            safetensors(&original, Format::F32),
            version,
            &logical(version, &original),
        );
    }
    // Version 7a's tensors may be called like layers, or like parameters.
    let original = TWO.of(Version::V7a, 5);
    let want = logical(Version::V7a, &original);
    let mut renamed = rename(&original, "s_emb.weight", "s_emb");
    for n in 0..3 {
        renamed = renamed
            .into_iter()
            .map(
                |(name, tensor)| match name.strip_suffix(&format!("ffn.s{n}")) {
                    Some(stem) => (format!("{stem}ffn.s{n}.weight"), tensor),
                    None => (name, tensor),
                },
            )
            .collect();
    }
    check(
        "7a renamed",
        safetensors(&renamed, Format::F32),
        Version::V7a,
        &want,
    );
}

/// The error of opening `bytes` and binding its tensors: one line that begins with the file.
fn error(bytes: Vec<u8>) -> Option<String> {
    let error = open_bytes("small.model", bytes)
        .and_then(|file| file.weights().map(drop))
        .err()?
        .to_string();
    assert!(error.starts_with("small.model: "), "{error}");
    assert!(!error.contains('\n'), "{error:?}");
    Some(error)
}

/// A missing tensor is named; one of another shape is named, or its logical tensor, which the graph checks, has another
/// shape and its name.
#[test]
fn missing_and_misshapen() {
    type Write = fn(&Tensors) -> Vec<u8>;
    let plain: Write = |tensors| safetensors(tensors, Format::F32);
    let six: Write = |tensors| gguf(tensors, Format::F32, &metadata_6(TWO, 1));
    let seven: Write = |tensors| gguf(tensors, Format::F32, &TWO.metadata());
    let of = |version| without_state(&TWO.of(version, 6));
    let mut files: Vec<(Tensors, Write)> = Vec::new();
    for version in SAFE {
        files.push((of(version), plain));
        files.push((converted(version, &of(version)), plain));
    }
    files.push((flash_linear_attention(&of(Version::V7), true), plain));
    files.push((flash_linear_attention(&of(Version::V7), false), plain));
    files.push((
        rename::blocks(&of(Version::V7), "blocks", "self_attn.time_mixer"),
        plain,
    ));
    files.push((hugging_face_6(&of(Version::V6)), plain));
    files.push((llama_names(&of(Version::V7)), seven));
    files.push((llama_6(&of(Version::V6), 1, true), six));
    files.push((llama_6(&of(Version::V6), 1, false), six));
    // What tells one version or dialect from another, in the first layer.
    let marks = [
        "att.ln_x.weight",
        "gate.weight",
        "r_k",
        "time_maa_x",
        "time_mix_x",
        "s_emb.weight",
        "attn.x_r",
    ];
    for (tensors, write) in files {
        let whole = open_bytes("whole", write(&tensors))
            .unwrap()
            .weights()
            .unwrap();
        let bound: Vec<Weight> = every_weight()
            .filter(|w| whole.matrix(*w).is_ok())
            .collect();
        for (name, tensor) in &tensors {
            let copied = name.starts_with("blk.0.time_mix_v") && !name.contains("value");
            let first = !name.contains(".1.");
            let only = name == "blocks.0.att.time_decay";
            if copied || only || first && marks.iter().any(|mark| name.contains(mark)) {
                continue;
            }
            let mut edited = tensors.clone();
            edited.remove(name);
            let missing = error(write(&edited)).unwrap_or_else(|| panic!("nobody misses {name}"));
            // Where all separate mixes are left out, the fused one is missing.
            assert!(missing.contains(name), "{name} is missing: {missing}");
            if first {
                continue;
            }
            for axis in 0..tensor.shape.len() {
                let mut edited = tensors.clone();
                edited.insert(name.clone(), tensor.grown(axis));
                let bytes = write(&edited);
                if let Some(message) = error(bytes.clone()) {
                    let named = tensors.keys().any(|name| message.contains(name));
                    assert!(named, "{name}, axis {axis}: {message}");
                    continue;
                }
                let other = open_bytes("other", bytes).unwrap().weights().unwrap();
                let shape = |weights: &dyn rwkv_sched::Weights, w| {
                    weights.matrix(w).map(|m| m.shape()).ok()
                };
                let seen = bound.iter().any(|&w| {
                    other.name(w) == *name && shape(other.as_ref(), w) != shape(whole.as_ref(), w)
                });
                assert!(seen, "{name}, axis {axis}: nothing differs");
            }
        }
    }
}

/// Every logical tensor that a model of two layers can have.
fn every_weight() -> impl Iterator<Item = Weight> {
    SAFE.into_iter()
        .flat_map(|version| logical(version, &TWO.of(version, 1)).into_keys())
}

/// Kinds of models that are recognised, and refused by name.
#[test]
fn refused() {
    #[track_caller]
    fn check(bytes: Vec<u8>, want: &str) {
        let message = error(bytes).unwrap();
        assert!(message.contains(want), "{message}, not {want}");
    }
    let with = |tensors: &Tensors, edits: &[(&str, bool)]| {
        let mut tensors = tensors.clone();
        for (name, there) in edits {
            if *there {
                tensors.insert((*name).to_owned(), Tensor::zeros(&[64, 64]));
            } else {
                tensors.remove(*name);
            }
        }
        safetensors(&tensors, Format::F32)
    };
    let six = TWO.of(Version::V6, 7);
    let att = "blocks.0.att";
    for (edit, there) in [
        ("gate.weight", false),
        ("gate_w1", true),
        ("time_maa_rkvw_w1", true),
    ] {
        check(
            with(&six, &[(&format!("{att}.{edit}"), there)]),
            "not supported: a research variant of RWKV-6",
        );
    }
    let seven = TWO.of(Version::V7, 7);
    check(
        with(&seven, &[("blocks.1.ffn.enn.weight", true)]),
        "not supported: RWKV-8",
    );
    check(
        with(&seven, &[("blocks.1.att.qkv.weight", true)]),
        "not supported: RWKV-7b",
    );
    let fla = flash_linear_attention(&without_state(&seven), false);
    check(
        with(&fla, &[("model.layers.1.attn.q_proj.weight", true)]),
        "not supported: a hybrid of RWKV and attention",
    );
    check(
        with(&fla, &[("model.layers.1.mlp.gate_proj.weight", true)]),
        "not supported: a hybrid with RMS norms",
    );
    check(
        with(
            &Tensors::new(),
            &[("model.layers.0.attn.x_proj.0.weight", true)],
        ),
        "not supported: RWKV-6 in flash-linear-attention's layout",
    );
    check(
        with(
            &Tensors::new(),
            &[("rwkv.blocks.0.attention.time_mix_key", true)],
        ),
        "not supported: RWKV-4 or RWKV-5 in Hugging Face's layout",
    );
    check(
        with(
            &Tensors::new(),
            &[("model.layers.0.self_attn.q_proj.weight", true)],
        ),
        "no RWKV model",
    );
    for (key, text, want) in [
        (
            "config.model_type",
            "rwkv6qwen2",
            "not supported: RWKV6-Qwen2",
        ),
        ("config.model_type", "arwkv7", "not supported: ARWKV-7"),
        ("config.hidden_act", "relu", "the activation `relu`"),
        (
            "config.attn",
            "{\"layers\": [3]}",
            "a hybrid of RWKV and attention",
        ),
    ] {
        check(safetensors_with(&fla, Format::F32, &[(key, text)]), want);
    }
    check(
        safetensors_with(
            &fla,
            Format::F32,
            &[("config.value_dim", "128"), ("config.hidden_size", "64")],
        ),
        "values of 128 channels beside 64",
    );
    let mut bare = fla.clone();
    bare.retain(|name, _| !name.contains("pre_norm"));
    check(
        safetensors_with(&bare, Format::F32, &[("config.norm_first", "false")]),
        "not supported: RWKV-7 without a norm of the embedding",
    );
    check(
        safetensors(&bare, Format::F32),
        "tensor model.layers.0.pre_norm.weight: missing",
    );
    // Without the key in its metadata, a head that is missing is missing.
    check(
        with(&fla, &[("lm_head.weight", false)]),
        "tensor lm_head.weight: missing",
    );
    let mut state = TWO.of(Version::V6, 8);
    state.insert(format!("{att}.time_state"), Tensor::zeros(&[2, 32, 33]));
    check(
        safetensors(&state, Format::F32),
        "tensor blocks.0.att.time_state: shape [2, 32, 33], where [2, 32, 32] is needed",
    );
    let mut wide = TWO.of(Version::V5_2, 8);
    wide.insert(format!("{att}.time_decay"), Tensor::zeros(&[3, 32]));
    check(
        safetensors(&wide, Format::F32),
        "3 heads, which do not divide 64 channels",
    );
    // A tensor without elements may claim any size.
    let mut empty = TWO.of(Version::V7, 8);
    for end in [1, 2] {
        empty.insert(
            format!("{att}.w{end}"),
            Tensor {
                shape: vec![1 << 50, 0],
                values: Vec::new(),
            },
        );
    }
    assert!(
        open_bytes("empty", safetensors(&empty, Format::F32))
            .unwrap()
            .model()
            .is_err()
    );
}

/// The small trained models of the development folder, where it is, bind completely.
#[test]
fn fixtures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    for (name, version, epsilon) in [
        ("tiny-rwkv-5v2-730K", Version::V5_2, 1e-5),
        ("tiny-rwkv-6v0-3m", Version::V6, 64e-5),
        ("tiny-rwkv-7v0-834K", Version::V7, 64e-5),
    ] {
        let path = folder.join(format!("{name}.safetensors"));
        if !path.exists() {
            continue;
        }
        let file = ModelFile::open(&path).unwrap();
        let mut tensors = Tensors::new();
        for view in file.checkpoint().tensors() {
            let mut values = vec![0.0; view.shape.iter().product()];
            view.format()
                .unwrap()
                .spec()
                .dequantize(view.bytes, &mut values);
            let shape = view.shape.to_vec();
            tensors.insert(view.name.to_owned(), Tensor { shape, values });
        }
        same(name, &file, version, &logical(version, &tensors));
        assert!(
            (file.config().group_norm_epsilon - epsilon).abs() < 1e-9,
            "{name}"
        );
        let mix = Weight::Block(1, BlockWeight::AttMix(Mix::Key));
        assert!(file.weights().unwrap().matrix(mix).is_ok());
    }
}
