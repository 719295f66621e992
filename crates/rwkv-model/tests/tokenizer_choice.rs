//! Which vocabulary a model gets: the one that is asked for, else the one inside its file, else one beside it, else
//! the one that goes with its size.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;

use checkpoint::{SMALL, Small, gguf, llama_names, safetensors};
use rwkv_kernels::Format;
use rwkv_model::{
    ModelFile,
    files::{Checkpoint, Field},
};

/// A file of this vocabulary that has none inside.
fn plain(vocab: usize) -> Vec<u8> {
    safetensors(&small(vocab).original(3), Format::F16)
}

/// A GGUF file of this vocabulary with `tokens` inside.
fn with_tokens(vocab: usize, tokens: &[&'static str], types: &[i32]) -> Vec<u8> {
    let mut metadata = small(vocab).metadata();
    for (key, value) in [
        ("tokenizer.ggml.model", Field::from("rwkv")),
        (
            "tokenizer.ggml.tokens",
            Field::strings(tokens.iter().copied()),
        ),
        (
            "tokenizer.ggml.token_type",
            Field::integers(types.iter().copied()),
        ),
    ] {
        metadata.insert(key.to_owned(), value);
    }
    gguf(
        &llama_names(&small(vocab).original(3)),
        Format::F16,
        &metadata,
    )
}

fn small(vocab: usize) -> Small {
    Small {
        layers: 1,
        width: 32,
        ffn: 32,
        vocab,
        ..SMALL
    }
}

/// A vocabulary file of one token.
const ONE: &[u8] = b"1 'a' 1\n";

/// A `tokenizer.json` of one token.
const JSON: &[u8] = br#"{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}"#;

/// The name of the tokenizer that the model in `bytes` gets, with `beside` in its folder; or the error.
fn choose(bytes: &[u8], beside: &[(&str, &[u8])], choice: Option<&str>) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.model");
    std::fs::write(&path, bytes).unwrap();
    for (name, text) in beside {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    // A folder of that name is no vocabulary.
    std::fs::create_dir(folder.path().join("a_vocab.txt")).unwrap();
    let choice = choice.map(|choice| match choice {
        "world" | "bytes" => choice.to_owned(),
        file => folder.path().join(file).display().to_string(),
    });
    let file = ModelFile::open(&path).unwrap();
    let tokenizer = file.tokenizer(choice.as_deref());
    tokenizer
        .map(|tokenizer| tokenizer.name().to_owned())
        .map_err(|error| error.to_string())
}

#[test]
fn order() {
    #[track_caller]
    fn check(bytes: &[u8], beside: &[(&str, &[u8])], choice: Option<&str>, want: &str) {
        assert_eq!(choose(bytes, beside, choice).as_deref(), Ok(want));
    }
    let inside = with_tokens(256, &["<s>", "a", "b"], &[3, 1, 1]);
    let foreign = {
        let mut metadata = small(256).metadata();
        metadata.insert("tokenizer.ggml.model".to_owned(), "gpt2".into());
        gguf(
            &llama_names(&small(256).original(3)),
            Format::F16,
            &metadata,
        )
    };
    let [bytes, world, least_world] = [256, 65_536, 65_529].map(plain);
    let vocab: &[(&str, &[u8])] = &[("rwkv_vocab_v1.txt", ONE)];

    check(&inside, vocab, Some("bytes"), "bytes");
    check(
        &inside,
        vocab,
        Some("rwkv_vocab_v1.txt"),
        "rwkv_vocab_v1.txt",
    );
    check(&inside, vocab, None, "gguf");
    check(&inside, &[], None, "gguf");
    check(&foreign, vocab, None, "rwkv_vocab_v1.txt");
    check(&foreign, &[], None, "bytes");
    check(&bytes, vocab, None, "rwkv_vocab_v1.txt");
    check(&world, vocab, None, "rwkv_vocab_v1.txt");
    check(&plain(300), vocab, None, "rwkv_vocab_v1.txt");
    check(&world, &[], None, "world");
    check(&least_world, &[], None, "world");
    check(&world, &[], Some("bytes"), "bytes");
    check(&bytes, &[], None, "bytes");
    // What counts as a vocabulary beside it, and which of several.
    check(&bytes, &[("MyVocab.TXT", ONE)], None, "MyVocab.TXT");
    check(
        &bytes,
        &[("vocab.json", ONE), ("words.txt", ONE)],
        None,
        "bytes",
    );
    let two: &[(&str, &[u8])] = &[("vocab_b.txt", ONE), ("vocab_a.txt", ONE)];
    check(&bytes, two, None, "vocab_a.txt");
    check(&bytes, two, Some("vocab_b.txt"), "vocab_b.txt");
    // `tokenizer.json` before vocabularies; whatever is named is known by its content.
    let both: &[(&str, &[u8])] = &[("a_vocab_1.txt", ONE), ("tokenizer.json", JSON)];
    check(&bytes, both, None, "tokenizer.json");
    check(&world, both, None, "tokenizer.json");
    check(&inside, both, None, "gguf");
    check(&bytes, both, Some("a_vocab_1.txt"), "a_vocab_1.txt");
    let renamed: &[(&str, &[u8])] = &[("vocab.txt", JSON), ("20B_tokenizer.json", ONE)];
    check(&bytes, renamed, None, "vocab.txt");
    check(
        &bytes,
        renamed,
        Some("20B_tokenizer.json"),
        "20B_tokenizer.json",
    );
    check(&bytes, &[("tokenizer_config.json", JSON)], None, "bytes");
}

#[test]
fn refused() {
    #[track_caller]
    fn check(bytes: &[u8], beside: &[(&str, &[u8])], choice: Option<&str>, want: &[&str]) {
        let error = choose(bytes, beside, choice).unwrap_err();
        assert!(!error.contains('\n'), "{error:?}");
        for want in want {
            assert!(error.contains(want), "{error}, not {want}");
        }
    }
    for vocab in [40, 255, 257, 65_528, 65_537] {
        let want = format!("vocabulary of {vocab} tokens");
        check(
            &plain(vocab),
            &[],
            None,
            &["small.model", &want, "--tokenizer"],
        );
    }
    let too_large = ["small.model", "has only 40", "--tokenizer"];
    check(&plain(40), &[], Some("world"), &too_large);
    check(&plain(40), &[], Some("bytes"), &too_large);
    check(
        &plain(40),
        &[("vocab.txt", b"41 'a' 1\n")],
        None,
        &too_large,
    );
    check(&plain(40), &[], Some("none.txt"), &["none.txt"]);
    // A vocabulary that cannot be read is not passed over for the next choice.
    let spoilt: &[(&str, &[u8])] = &[("vocab.txt", b"one\n")];
    check(&plain(256), spoilt, None, &["vocab.txt, line 1"]);
    let spoilt: &[(&str, &[u8])] = &[("tokenizer.json", b"{}"), ("vocab.txt", ONE)];
    check(
        &plain(256),
        spoilt,
        None,
        &["tokenizer.json: ", "no `model`"],
    );
    let types = with_tokens(256, &["<s>", "a"], &[3]);
    check(
        &types,
        &[("vocab.txt", ONE)],
        None,
        &["2 tokens but 1 token types"],
    );
}

/// A model that is a folder has its vocabulary inside it.
#[test]
fn in_a_folder() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(parent.path().join("tokenizer.json"), JSON).unwrap();
    std::fs::write(folder.join("rwkv_vocab_v20230424.txt"), ONE).unwrap();
    let checkpoint = Checkpoint::from_vec("model", plain(256)).unwrap();
    let file = ModelFile::from_checkpoint(checkpoint, Some(&folder)).unwrap();
    let name = file.tokenizer(None).unwrap().name().to_owned();
    assert_eq!(name, "rwkv_vocab_v20230424.txt");
}

/// A model that is in no folder has nothing beside it.
#[test]
fn in_memory() {
    let file = checkpoint::open_bytes("small.model", plain(256)).unwrap();
    assert_eq!(file.tokenizer(None).unwrap().name(), "bytes");
}
