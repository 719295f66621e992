//! One model in every kind of file that can hold it gives the same logits; files that hold no such model say why.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/logits.rs"]
mod logits;
#[path = "support/pytorch.rs"]
mod pytorch;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/rename.rs"]
mod rename;

use checkpoint::{
    Metadata, SMALL, Small, Tensor, Tensors, gguf, llama_names, open_bytes, pairs_transposed,
    safetensors,
};
use logits::logits;
use rwkv_kernels::Format;
use rwkv_model::{ModelFile, OpenOptions, files::Field};
use rwkv_sched::Version;

/// What is the same model gives the same bits.
#[test]
fn containers_agree() {
    let small = SMALL;
    let original = small.original(7);
    let renamed = llama_names(&original);
    let metadata = small.metadata();
    let reference = open_bytes("reference", safetensors(&original, Format::F32)).unwrap();
    let config = reference.config();
    assert_eq!(
        [
            config.layers,
            config.width,
            config.head_size,
            config.ffn,
            config.vocab
        ],
        [
            small.layers,
            small.width,
            small.head_size,
            small.ffn,
            small.vocab
        ]
    );
    let want = logits(&reference);
    let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    assert!((0.01..100.0).contains(&size), "logits of {size} say little");

    let check = |name: &str, bytes: Vec<u8>| {
        let file = open_bytes(name, bytes).unwrap();
        assert_eq!(file.config(), config, "{name}");
        assert!(logits(&file) == want, "{name}: other logits");
    };
    let turned = pairs_transposed(&original);
    // Of layer 0's value residual, files have nothing, a dummy, or a copy.
    let mut dummies = original.clone();
    for part in 0..3 {
        let dummy = original["ln_out.bias"].clone();
        dummies.insert(format!("blocks.0.att.v{part}"), dummy);
    }
    for format in [Format::F32, Format::F16, Format::Bf16] {
        check("original", safetensors(&original, format));
        check("pairs transposed", safetensors(&turned, format));
        check("dummies", safetensors(&dummies, format));
    }
    for format in [Format::F32, Format::F16, Format::Bf16, Format::Q8_0] {
        check("GGUF", gguf(&renamed, format, &metadata));
    }
    let mut counted = metadata;
    counted.remove("rwkv7.block_count");
    check(
        "GGUF, layers counted",
        gguf(&renamed, Format::F16, &counted),
    );

    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("model.st", safetensors(&turned, Format::F16)),
        ("model.gguf", gguf(&renamed, Format::Q8_0, &counted)),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert!(logits(&ModelFile::open(&path).unwrap()) == want, "{name}");
    }
}

/// What the hub has of a model: the original `.pth`, the converted `.st`, a folder of shards.
#[test]
fn hub_files_agree() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for version in [Version::V6, Version::V7] {
        let mut original = SMALL.of(version, 3);
        original.retain(|name, _| !name.ends_with("time_state"));
        let hugging_face = match version {
            Version::V7 => rename::flash_linear_attention(&original, false),
            _ => rename::hugging_face_6(&original),
        };
        let config = br#"{"model_type": "rwkv", "norm_eps": 1e-5, "num_hidden_layers": 2}"#;
        put("hub/config.json", config);
        let mut map = serde_json::Map::new();
        let [mut first, mut second] = [Tensors::new(), Tensors::new()];
        for (index, (name, tensor)) in hugging_face.into_iter().enumerate() {
            let (shard, file) = match index % 2 {
                0 => (&mut first, "model-00001-of-00002.safetensors"),
                _ => (&mut second, "model-00002-of-00002.safetensors"),
            };
            map.insert(name.clone(), file.into());
            shard.insert(name, tensor);
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        put("hub/model.safetensors.index.json", index.as_bytes());
        for (n, shard) in [(1, first), (2, second)] {
            let name = format!("hub/model-{n:05}-of-00002.safetensors");
            put(&name, &safetensors(&shard, Format::F16));
        }
        let converted = rename::converted(version, &original);
        let want = open_bytes("reference", safetensors(&original, Format::F16)).unwrap();
        let want = logits(&want);
        for path in [
            put("model.pth", &pytorch::pytorch(&original, Format::F16)),
            put("model.st", &safetensors(&converted, Format::F16)),
            folder.path().join("hub"),
        ] {
            let options = OpenOptions {
                group_norm_epsilon: Some(64e-5),
                ..OpenOptions::default()
            };
            let file = ModelFile::open_with(&path, options).unwrap();
            assert_eq!(file.config().version, version);
            let path = path.display();
            assert!(logits(&file) == want, "{version} {path}: other logits");
        }
    }
}

/// Where a pair is square, nothing tells its orientation: it is taken as in the original checkpoints.
#[test]
fn square_pairs() {
    let small = Small {
        ranks: [64; 4],
        ..SMALL
    };
    let original = small.original(8);
    let open = |bytes| logits(&open_bytes("square", bytes).unwrap());
    let want = open(safetensors(&original, Format::F32));
    let renamed = llama_names(&original);
    assert!(open(gguf(&renamed, Format::F32, &small.metadata())) == want);
    assert!(open(safetensors(&pairs_transposed(&original), Format::F32)) != want);
}

/// The error of opening `bytes` and binding its tensors: one line that begins with the file.
#[track_caller]
fn error(bytes: Vec<u8>) -> String {
    let opened = open_bytes("small.model", bytes).and_then(|file| file.model().map(drop));
    let error = opened.expect_err("it should be refused").to_string();
    assert!(error.starts_with("small.model: "), "{error}");
    assert!(!error.contains('\n'), "{error:?}");
    error
}

/// A file without one of its tensors names it; of a tensor with another shape, it names that one or the one that no
/// longer fits it.
#[test]
fn every_tensor_is_needed() {
    type Write = fn(&Tensors) -> Vec<u8>;
    let original = SMALL.original(9);
    let files: [(Tensors, Write); 3] = [
        (original.clone(), |t| safetensors(t, Format::F16)),
        (pairs_transposed(&original), |t| safetensors(t, Format::F16)),
        (llama_names(&original), |t| {
            gguf(t, Format::F32, &SMALL.metadata())
        }),
    ];
    for (tensors, write) in files {
        for (name, tensor) in &tensors {
            // Layer 0's copies of the rate's tensors are not read.
            if name.starts_with("blk.0.time_mix_v") && !name.contains("value") {
                continue;
            }
            let mut without = tensors.clone();
            without.remove(name);
            let missing = error(write(&without));
            // Without r_k it is taken for a version 5.
            if name != "blocks.0.att.r_k" {
                assert!(missing.contains(name), "{name} is missing: {missing}");
            }
            for axis in 0..tensor.shape.len() {
                let mut other = tensors.clone();
                other.insert(name.clone(), tensor.grown(axis));
                let message = error(write(&other));
                let named = tensors.keys().any(|name| message.contains(name));
                // The columns of the embedding are the width, those of r_k the head size.
                assert!(named || message.contains("heads of 3"), "{name}: {message}");
            }
        }
    }
}

/// Files that hold another model, or contradict themselves.
#[test]
fn refused() {
    #[track_caller]
    fn check(bytes: Vec<u8>, want: &str) {
        let error = error(bytes);
        assert!(error.contains(want), "{error}, not {want}");
    }
    let original = SMALL.original(10);
    let with = |edits: &[(&str, Option<&[usize]>)]| {
        let mut tensors = original.clone();
        for (name, shape) in edits {
            match shape {
                None => drop(tensors.remove(*name)),
                Some(shape) => drop(tensors.insert((*name).to_owned(), Tensor::zeros(shape))),
            }
        }
        safetensors(&tensors, Format::F16)
    };
    let c = SMALL.width;
    for (mark, version) in [
        ("blocks.0.ffn.enn.weight", "RWKV-8"),
        ("blocks.0.qkv.weight", "RWKV-7b"),
    ] {
        let want = format!("not supported: {version}");
        check(with(&[(mark, Some(&[c, c]))]), &want);
    }
    check(
        safetensors(
            &Tensors::from([("model.embed".to_owned(), Tensor::zeros(&[4, 4]))]),
            Format::F32,
        ),
        "no RWKV model",
    );
    check(
        with(&[("emb.weight", Some(&[40, 8, 8]))]),
        "tensor emb.weight has shape [40, 8, 8], where a matrix is needed",
    );
    check(with(&[("emb.weight", Some(&[0, 64]))]), "0 tokens");
    check(
        with(&[("blocks.0.att.r_k", Some(&[64]))]),
        "tensor blocks.0.att.r_k has shape [64]",
    );
    check(
        with(&[("blocks.0.att.r_k", Some(&[3, 24]))]),
        "heads of 24 in 64 channels",
    );
    check(
        with(&[("blocks.0.att.r_k", Some(&[4, 32]))]),
        "tensor blocks.0.att.r_k: it has shape 1×128",
    );
    check(
        with(&[("blocks.1.att.w1", Some(&[64, 8, 1]))]),
        "tensor blocks.1.att.w1: shape [64, 8, 1], where a matrix is needed",
    );
    check(
        with(&[
            ("blocks.1.att.g1", Some(&[64, 0])),
            ("blocks.1.att.g2", Some(&[0, 64])),
        ]),
        "tensor blocks.1.att.g1: ",
    );
    check(
        with(&[("blocks.3.ln1.weight", Some(&[64]))]),
        "tensor blocks.2.",
    );
    let far = format!("blocks.{}.ln1.weight", usize::MAX);
    check(with(&[(&far, Some(&[64]))]), "it has a tensor of layer");

    let renamed = llama_names(&original);
    let said = |key: &str, value: Option<Field<'static>>| {
        let mut metadata: Metadata = SMALL.metadata();
        metadata.remove(key);
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value);
        }
        gguf(&renamed, Format::Q8_0, &metadata)
    };
    for (architecture, want) in [
        (
            "rwkv6qwen2",
            "not supported: GGUF architecture `rwkv6qwen2`",
        ),
        ("arwkv7", "not supported: GGUF architecture `arwkv7`"),
        ("llama", "its GGUF architecture is `llama`"),
        ("two\nlines", "its GGUF architecture is `two\\nlines`"),
    ] {
        check(
            said("general.architecture", Some(architecture.into())),
            want,
        );
    }
    check(
        said("general.architecture", None),
        "no general.architecture",
    );
    check(
        said("general.architecture", Some(Field::U32(7))),
        "no general.architecture",
    );
    for (layers, want) in [
        (
            Field::U32(3),
            "its metadata says 3 layers, but the file has 2",
        ),
        (
            Field::U32(1),
            "its metadata says 1 layers, but the file has 2",
        ),
        (Field::U64(u64::MAX), "but the file has 2"),
    ] {
        check(said("rwkv7.block_count", Some(layers)), want);
    }
    let head_size = "rwkv7.wkv.head_size";
    check(said(head_size, None), "no rwkv7.wkv.head_size");
    check(
        said(head_size, Some("wide".into())),
        "no rwkv7.wkv.head_size",
    );
    check(
        said(head_size, Some(Field::I32(-64))),
        "no rwkv7.wkv.head_size",
    );
    for (size, want) in [
        (Field::U32(0), "heads of 0 in 64 channels"),
        (Field::U32(24), "heads of 24 in 64 channels"),
        (Field::U32(256), "heads of 256 in 64 channels"),
        (
            Field::U64(u64::MAX),
            "heads of 18446744073709551615 in 64 channels",
        ),
    ] {
        check(said(head_size, Some(size)), want);
    }
    for epsilon in [0.0, -1.0, f32::NAN] {
        let key = "rwkv7.attention.layer_norm_epsilon";
        check(said(key, Some(Field::F32(epsilon))), "epsilon of");
    }
    let mut tensors = renamed.clone();
    tensors.insert(
        "blk.1.time_mix_lerp_fused.weight".to_owned(),
        Tensor::zeros(&[7, 1, 1, c]),
    );
    check(
        gguf(&tensors, Format::F32, &SMALL.metadata()),
        "tensor blk.1.time_mix_lerp_fused.weight: 448 elements, where 6 vectors of 64 are needed",
    );
}
