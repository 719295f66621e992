//! Folders: which file is taken, shards, `config.json`, and what an index may not say.

use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;

use super::hugging_face::{parse_config, parse_index};
use super::*;

/// A file of one tensor `[1]` called `name`, all of whose bytes are `fill`.
fn tensor(name: &str, fill: u8) -> BTreeMap<String, Planned> {
    BTreeMap::from([(
        name.to_owned(),
        (Format::F32.into(), vec![1], vec![fill; 4]),
    )])
}

fn safetensors(name: &str, fill: u8) -> Vec<u8> {
    let texts = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&texts, &tensor(name, fill))
}

fn pth(name: &str, fill: u8) -> Vec<u8> {
    pth::write(&tensor(name, fill), &pth::PLAIN)
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

const CONFIG: &str = r#"{"head_dim": 64, "norm_eps": 1e-05, "tie": false, "act": "sqrelu", "attn": null,
                         "ranks": [1, 2], "nested": {"a": "b"}}"#;
const LAYER: &str = "model.layers.0.attn.x_r";

/// What opening `path` in a folder of `files` gives: the container and the names and first bytes of all tensors.
fn opened(files: &[(&str, Vec<u8>)], path: &str) -> Result<(Container, String), String> {
    let folder = folder(files);
    let checkpoint =
        Checkpoint::open(&folder.path().join(path)).map_err(|error| error.to_string())?;
    read_all(&checkpoint);
    let tensors = checkpoint
        .tensors()
        .map(|t| format!("{}={}", t.name, t.bytes[0]));
    let mut all = tensors.collect::<Vec<_>>().join(" ");
    if checkpoint.metadata().u64("config.head_dim").is_some() {
        all.push_str(" configured");
    }
    Ok((checkpoint.container(), all))
}

#[test]
fn a_path_finds_its_files() {
    use Container::{Gguf, HuggingFace, Pytorch, Safetensors};
    let config = || ("config.json", CONFIG.as_bytes().to_vec());
    let check = |files: &[(&str, Vec<u8>)], path: &str, container, all: &str| {
        assert_eq!(
            opened(files, path),
            Ok((container, all.to_owned())),
            "{path}"
        );
    };
    let single = [config(), ("model.safetensors", safetensors(LAYER, 1))];
    let tensor = format!("{LAYER}=1 configured");
    for path in ["", "config.json", "model.safetensors"] {
        check(&single, path, HuggingFace, &tensor);
    }
    let bin = [config(), ("pytorch_model.bin", pth(LAYER, 1))];
    for path in ["", "config.json", "pytorch_model.bin"] {
        check(&bin, path, HuggingFace, &tensor);
    }
    check(&single[1..], "", Safetensors, &format!("{LAYER}=1"));
    check(&bin[1..], "", Pytorch, &format!("{LAYER}=1"));
    // Its own loader's order.
    check(
        &[bin[1].clone(), ("model.safetensors", safetensors(LAYER, 2))],
        "",
        Safetensors,
        &format!("{LAYER}=2"),
    );
    // A name of the original sort needs no config; a folder has it all the same.
    let original = [
        config(),
        ("model.safetensors", safetensors("emb.weight", 3)),
    ];
    check(&original, "model.safetensors", Safetensors, "emb.weight=3");
    check(&original, "", HuggingFace, "emb.weight=3 configured");
    // One file of any name.
    let note = ("README.md", b"read me".to_vec());
    check(&[note.clone(), ("x.PTH", pth("a", 4))], "", Pytorch, "a=4");
    check(
        &[note.clone(), ("x.st", safetensors("a", 5))],
        "",
        Safetensors,
        "a=5",
    );
    check(
        &[config(), ("x.st", safetensors(LAYER, 1))],
        "",
        HuggingFace,
        &tensor,
    );
    let gguf = small(Gguf).0;
    assert_eq!(opened(&[("x.gguf", gguf)], "").unwrap().0, Gguf);

    let says = |files: &[(&str, Vec<u8>)], path: &str, part: &str| {
        let message = opened(files, path).unwrap_err();
        assert!(message.contains(part), "{message:?} does not say {part:?}");
        assert!(!message.contains(char::is_control), "{message:?}");
    };
    says(
        std::slice::from_ref(&note),
        "",
        "folder without a checkpoint",
    );
    says(&[config()], "", "folder without a checkpoint");
    says(&[config()], "config.json", "folder without a checkpoint");
    says(
        &[("a.pth", pth("a", 1)), ("b\n.gguf", Vec::new())],
        "",
        "several checkpoints (\"a.pth\", \"b\\n.gguf\")",
    );
    says(&[note], "config.json", "no such file");
    says(
        &[("config.json", b"{".to_vec()), single[1].clone()],
        "",
        "JSON is wrong",
    );
    says(
        &[("config.json", b"[]".to_vec()), single[1].clone()],
        "model.safetensors",
        "config.json: the JSON is no object",
    );
}

#[test]
fn shards_are_one_checkpoint() {
    for (index, write) in [
        (
            "model.safetensors.index.json",
            safetensors as fn(&str, u8) -> Vec<u8>,
        ),
        ("pytorch_model.bin.index.json", pth),
    ] {
        let map = r#"{"metadata": {"total_size": 12}, "weight_map": {"a": "1.st", "b": "2.st", "c": "deep/3.st"}}"#;
        let mut files = vec![
            (index, map.as_bytes().to_vec()),
            ("1.st", write("a", 1)),
            ("2.st", write("b", 2)),
            ("deep/3.st", write("c", 3)),
        ];
        for with_config in [false, true] {
            if with_config {
                files.push(("config.json", CONFIG.as_bytes().to_vec()));
            }
            let all = format!(
                "a=1 b=2 c=3{}",
                if with_config { " configured" } else { "" }
            );
            for path in ["", index] {
                assert_eq!(
                    opened(&files, path),
                    Ok((Container::HuggingFace, all.clone()))
                );
            }
        }
        let folder = folder(&files);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let sizes = files[1..4].iter().map(|(_, bytes)| bytes.len() as u64);
        assert_eq!(checkpoint.len_bytes(), sizes.sum::<u64>());
        assert_eq!(checkpoint.source(), folder.path().display().to_string());
        let metadata = checkpoint.metadata();
        for (key, expected) in [
            ("config.head_dim", Some("64")),
            ("config.tie", Some("false")),
            ("config.act", Some("sqrelu")),
            ("config.attn", None),
            ("config.ranks", Some("[1,2]")),
            ("config.nested", Some(r#"{"a":"b"}"#)),
        ] {
            assert_eq!(metadata.string(key), expected, "{key}");
        }
        assert_eq!(metadata.f64("config.norm_eps"), Some(1e-5));
        assert_eq!(metadata.bool("config.tie"), Some(false));
        if index.starts_with("model") {
            assert_eq!(metadata.string("format"), Some("pt"));
        }
    }
}

#[test]
fn an_index_leads_nowhere_else() {
    let check = |map: &str, part: &str| {
        let files = [
            (
                "inside/model.safetensors.index.json",
                format!("{{\"weight_map\": {map}}}").into_bytes(),
            ),
            ("inside/1.st", safetensors("a", 1)),
            ("inside/2.st", safetensors("a", 1)),
            ("inside/3.gguf", small(Container::Gguf).0),
            ("inside/4.st", safetensors("d", 1)[..20].to_vec()),
            ("outside.st", safetensors("b", 2)),
        ];
        let message = opened(&files, "inside").map_or_else(|message| message, |(_, all)| all);
        assert!(message.contains(part), "{message:?} does not say {part:?}");
        assert!(!message.contains(char::is_control), "{message:?}");
    };
    check(r#"{"a": "1.st"}"#, "a=1");
    for path in [
        "../outside.st",
        "./1.st",
        "x/../1.st",
        "/etc/passwd",
        "..",
        ".",
        "",
        "x//1.st",
        "x/",
        "..\\\\outside.st",
        "C:1.st",
        "1.st\\u0000",
        "\\u001b[31m",
    ] {
        check(
            &format!("{{\"b\": \"{path}\"}}"),
            "no path inside of the folder",
        );
    }
    check(r#"{"b": 5}"#, "no path inside of the folder");
    check(r#"{"b": "5.st"}"#, "5.st: no such file");
    check("{}", "names no tensors");
    check("[]", "no object called weight_map");
    check("{", "JSON is wrong");
    check(&"[".repeat(100_000), "JSON is wrong");
    check(
        r#"{"a": "1.st", "b": "1.st"}"#,
        "has tensor \"b\" in \"1.st\", where it is not",
    );
    check(
        r#"{"a": "1.st", "b": "2.st"}"#,
        "\"a\" is in more than one shard",
    );
    check(r#"{"a": "3.gguf"}"#, "needs no index");
    check(r#"{"a": "4.st"}"#, "4.st: the header needs");
    let long = format!("{{\"weight_map\": {{\"a\": \"{}\"}}}}", "x".repeat(4 << 20));
    assert!(parse_index("i", long.as_bytes()).is_err());
    assert!(parse_config("c", long.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn json_of_any_sort_does_no_harm(
        words in vec(prop::sample::select(&["{", "}", "[", "]", ":", ",", "\"weight_map\"", "\"a\"", "1e9", "null", "\"\\ud800\""][..]), 0..30)
    ) {
        let json = words.concat();
        for error in [
            parse_config("c", json.as_bytes()).err(),
            parse_index("i", json.as_bytes()).err(),
        ] {
            prop_assert!(error.is_none_or(|error| !error.to_string().contains(char::is_control)));
        }
    }
}
