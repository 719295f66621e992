#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; ids are small"
)]

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Merges, in their order; the text of each is that of two earlier tokens.
const MERGES: [(&str, &str); 14] = [
    ("h", "e"),
    ("Ġ", "t"),
    ("l", "l"),
    ("Ġt", "he"),
    ("he", "ll"),
    ("hell", "o"),
    ("Ã", "©"),
    ("ä", "¸"),
    ("ä¸", "Ń"),
    ("Ġ", "Ġ"),
    ("ĠĠ", "ĠĠ"),
    ("1", "2"),
    ("Ċ", "Ċ"),
    ("o", "o"),
];

/// Byte-level BPE as GPT-NeoX's file has it: two special tokens, the bytes, what merges make, and added tokens.
fn byte_level_file() -> Value {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=u8::MAX).map(|byte| byte_level::character(byte).to_string());
    let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    let special = ["<|endoftext|>", "<|padding|>"].map(str::to_owned);
    for token in special.into_iter().chain(bytes).chain(merged) {
        vocab.insert(token, vocab.len().into());
    }
    let next = vocab.len();
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": !special})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            added(0, "<|endoftext|>", true), added(1, "<|padding|>", true),
            added(next, "   ", false), added(next + 1, "      ", false),
        ],
        "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab,
            "merges": MERGES.map(|(left, right)| format!("{left} {right}")),
        },
    })
}

fn load(file: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json("tokenizer.json", file.to_string().as_bytes())
}

/// The file with one place of it replaced; a place that does not exist is made.
fn with(mut file: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    file.pointer_mut(parent).unwrap()[key] = value;
    file
}

#[test]
fn byte_level() {
    let tokenizer = load(&byte_level_file()).unwrap();
    assert_eq!(
        (
            tokenizer.name(),
            tokenizer.vocab_size(),
            tokenizer.end_of_text()
        ),
        ("tokenizer.json", 2 + 256 + MERGES.len() + 2, Some(0))
    );
    let check = |text: &str, pieces: &[&[u8]]| {
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        let found: Vec<_> = ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(found, pieces, "{text:?}");
    };
    check("", &[]);
    check("hello the", &[b"hello", b" the"]);
    check("hell oo", &[b"hell", b" ", b"oo"]);
    check("a<|endoftext|>the", &[b"a", b"<|endoftext|>", b"t", b"he"]);
    check(
        "é中\u{4e2e}",
        &["é".as_bytes(), "中".as_bytes(), b"\xe4\xb8", b"\xae"],
    );
    check("\n\n12\0\x7f", &[b"\n", b"\n", b"12", b"\0", b"\x7f"]);
    check("a   b      c", &[b"a", b"   ", b"b", b"      ", b"c"]);
    let id = |text: &str| tokenizer.encode(text.as_bytes()).unwrap()[0];
    assert!(tokenizer.is_uncounted(id("12")) && !tokenizer.is_uncounted(id("the")));
    assert_eq!(tokenizer.token(tokenizer.vocab_size() as u32), None);
    let error = tokenizer.encode(b"ab\xffa").unwrap_err().to_string();
    let expected = "cannot encode byte 0xff at offset 2: the text is not UTF-8 there, and the tokenizer tokenizer.json encodes only UTF-8 (convert the text)";
    assert_eq!(error, expected);
}

/// The definition: as long as two neighbours can be merged, those of the earliest merge are, the leftmost first.
fn naive(file: &Value, text: &str) -> Vec<u32> {
    let mut pieces: Vec<String> = text
        .bytes()
        .map(|byte| byte_level::character(byte).to_string())
        .collect();
    for (left, right) in MERGES {
        // A merge makes no pair of an earlier one here: each needs what only later ones make, or bytes.
        let mut at = 0;
        while at + 1 < pieces.len() {
            if (pieces[at].as_str(), pieces[at + 1].as_str()) == (left, right) {
                let second = pieces.remove(at + 1);
                pieces[at].push_str(&second);
            }
            at += 1;
        }
    }
    let vocab: HashMap<String, u32> =
        serde_json::from_value(file["model"]["vocab"].clone()).unwrap();
    pieces.iter().map(|piece| vocab[piece]).collect()
}

/// Texts in which merges, added tokens and cut characters are common.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(
            &["h", "e", "l", "o", "t", " ", "   ", "the", "hello", "é", "中", "😀", "\n", "12", "\u{301}", "Ġ", "'s",
              "<|endoftext|>", "<|", "\u{fffd}"][..]
        ).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// An error is one line, and not of the crate's panics, which are caught but not wanted.
fn no_panic(result: Result<Vec<u32>, TokenizerError>) -> Result<(), TestCaseError> {
    let error = result.err().map(|error| error.to_string());
    let error = error.unwrap_or_default();
    prop_assert!(
        !error.contains('\n') && !error.contains(hugging_face::PANICKED),
        "{}",
        error
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn texts_come_back(text in texts()) {
        thread_local!(static TOKENIZER: Tokenizer = load(&byte_level_file()).unwrap());
        let tokenizer = TOKENIZER.with(Tokenizer::clone);
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text.as_bytes());
        // Token by token, and byte by byte, no half characters.
        let (mut streamed, mut single) = (String::new(), String::new());
        let (mut by_token, mut by_byte) = (TextDecoder::new(), TextDecoder::new());
        for id in ids {
            let bytes = tokenizer.token(id).unwrap();
            streamed += by_token.push(bytes);
            for byte in bytes {
                single += by_byte.push(&[*byte]);
            }
        }
        streamed += by_token.finish();
        single += by_byte.finish();
        prop_assert_eq!(&streamed, &text);
        prop_assert_eq!(&single, &text);
    }

    #[test]
    fn encodes_as_the_definition(text in texts()) {
        thread_local!(static FILE: Value = {
            let file = with(byte_level_file(), "/pre_tokenizer/use_regex", false.into());
            with(file, "/added_tokens", json!([]))
        });
        let file = FILE.with(Value::clone);
        prop_assert_eq!(load(&file).unwrap().encode(text.as_bytes()).unwrap(), naive(&file, &text));
    }

    /// Any byte changed and any end cut away gives an error or a tokenizer that encodes or refuses.
    #[test]
    fn damaged(at: prop::sample::Index, byte: u8, cut: bool) {
        thread_local!(static FILE: String = byte_level_file().to_string());
        let mut file = FILE.with(String::clone).into_bytes();
        let at = at.index(file.len());
        if cut {
            file.truncate(at);
        } else {
            file[at] = byte;
        }
        let tokenizer = Tokenizer::from_json("x", &file);
        no_panic(tokenizer.and_then(|tokenizer| tokenizer.encode("hello the é  \n\n12".as_bytes())))?;
    }

    /// Parts and added tokens that are nearly right reach deeper than damage.
    #[test]
    fn hostile_parts(
        kinds in prop::collection::vec((0usize..3, 0usize..10, 0usize..9), 1..6),
        flags in prop::collection::vec(0u32..16, 4),
        text in texts(),
    ) {
        // The last of each row is refused.
        const KINDS: [[&str; 10]; 3] = [
            ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Prepend", "Replace", "ByteLevel", "Precompiled"],
            ["ByteLevel", "Split", "Split", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "Metaspace",
             "BertPreTokenizer", "FixedLength"],
            ["ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Strip", "Replace", "BPEDecoder", "WordPiece", "Fuse",
             "CTC"],
        ];
        const SPLITS: [&str; 5] = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];
        let mut pipelines = [vec![], vec![], vec![]];
        for (pipeline, kind, variant) in kinds {
            let kind = KINDS[pipeline][kind];
            let pattern = match variant {
                0 if kind == "Split" => json!({"String": ""}),
                1..=4 if kind == "Split" => json!({"Regex": (["e*|$", r"\s+(?!\S)|l", "", r"^|."][variant - 1])}),
                _ => json!({"String": (["e", "é", " "][variant / 3])}),
            };
            let sides = |of: usize| (variant / of).is_multiple_of(2);
            let space = if kind == "Strip" { " " } else { ["", " ", "éa"][variant / 3] };
            pipelines[pipeline].push(json!({
                "type": kind, "pattern": pattern, "content": space, "prepend": space, "behavior": (SPLITS[variant % 5]),
                "invert": sides(1), "start": variant, "stop": 0, "length": 0, "replacement": "▁",
                "prepend_scheme": (["always", "first", "never"][variant % 3]), "individual_digits": sides(1),
                "add_prefix_space": sides(2), "trim_offsets": true, "use_regex": sides(1), "suffix": "e",
                "prefix": (["", "l"][variant % 2]), "cleanup": sides(1), "precompiled_charsmap": "AAAA", "split": sides(1),
            }));
        }
        let [normalizers, pretokenizers, decoders] = pipelines;
        let mut file = byte_level_file();
        file["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": pretokenizers});
        file["decoder"] = json!({"type": "Sequence", "decoders": decoders});
        for (place, flags) in flags.into_iter().enumerate() {
            let names = ["lstrip", "rstrip", "single_word", "normalized"];
            for (bit, name) in names.into_iter().enumerate() {
                file["added_tokens"][place][name] = (flags >> bit & 1 == 1).into();
            }
        }
        no_panic(load(&file).and_then(|tokenizer| tokenizer.encode(text.as_bytes())))?;
    }
}

/// SentencePiece's spaces and bytes: a token's text does not depend on its place.
#[test]
fn decoded_by_the_decoder() {
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "<0xE4>": 3, "<0xB8>": 4, "<0xAD>": 5, "▁": 6, "a": 7, "▁a": 8});
    let file = json!({
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
                  "vocab": vocab, "merges": [["▁", "a"]]},
    });
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.end_of_text(), Some(2));
    let ids = tokenizer.encode(" aa 中</s>".as_bytes()).unwrap();
    assert_eq!(ids, [8, 7, 6, 3, 4, 5, 2]);
    assert_eq!(tokenizer.decode(&ids), " aa 中</s>".as_bytes());
    assert_eq!(tokenizer.token(3), Some(&b"\xe4"[..]));

    let words = json!({
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "p:3c": 1, "t1": 2}},
    });
    let tokenizer = load(&words).unwrap();
    assert_eq!(tokenizer.end_of_text(), None);
    assert_eq!(tokenizer.encode(b"p:3c t1 t2").unwrap(), [1, 2, 0]);
    assert_eq!(tokenizer.decode(&[1, 2]), b" p:3c t1");
}

#[test]
fn refused() {
    let file = byte_level_file();
    let check = |pointer: &str, value: Value, want: &str| {
        let error = load(&with(file.clone(), pointer, value)).unwrap_err();
        let error = error.to_string();
        let framed = error.starts_with("tokenizer.json: ") && error.contains("download it again");
        assert!(framed && !error.contains('\n'), "{error}");
        assert!(error.contains(want), "{pointer}: {error}, not {want}");
    };
    let token = |id: Value, content: &str| {
        json!([{"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}])
    };
    check("/version", json!("2.0"), "version '2.0'");
    check("/model", json!(null), "no `model`");
    check("/model/type", json!("Unigram"), "\"Unigram\"");
    check("/model/vocab", json!({}), "`vocab` is empty");
    check("/model/vocab/h", json!(-1), "id of token \"h\"");
    check("/model/vocab/h", json!(1u64 << 40), "id of token \"h\"");
    check("/model/vocab/h", json!(0), "both have id 0");
    check(
        &format!("/model/vocab/{}", "a".repeat(3000)),
        json!(999),
        "longer than 1024",
    );
    check(
        "/model/merges",
        json!(["h e", "he he"]),
        "the merge of \"he\" and \"he\"",
    );
    check("/model/merges", json!(["he"]), "no merge");
    check("/model/merges", json!([["h", "e", "l"]]), "no merge");
    check(
        "/model/end_of_word_suffix",
        json!("</w>"),
        "`end_of_word_suffix`",
    );
    check("/added_tokens", json!(3), "no list");
    check("/added_tokens", token(json!(5000), "x y"), "id 5000");
    check("/added_tokens", token(json!(null), "x y"), "id of token");
    check(
        "/normalizer",
        json!({"type": "Precompiled"}),
        "\"Precompiled\"",
    );
    check(
        "/pre_tokenizer",
        json!({"type": "FixedLength", "length": 0}),
        "\"FixedLength\"",
    );
    check("/pre_tokenizer", json!({}), "without a type");
    check(
        "/decoder",
        json!({"type": "Strip", "content": " ", "start": 0, "stop": 9}),
        "`Strip`",
    );
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    check("/pre_tokenizer", split("(?:(?=a)a{999}){999}"), "too large");
    check("/pre_tokenizer", split(&"a".repeat(5000)), "too large");
    check("/pre_tokenizer", split("("), "tokenizer.json");
    let nothing = json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b"});
    check("/normalizer", nothing, "`Replace`");
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
    check("/normalizer", sequence(vec![doubling; 12]), "far longer");
    check(
        "/normalizer",
        sequence(vec![json!({"type": "NFC"}); 20]),
        "more than 16",
    );
    for text in ["", "{", "[]", "{}", "{\"model\": 1}", "\u{0}"] {
        let error = Tokenizer::from_json("x.json", text.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("x.json: "), "{error}");
    }
    let deep = format!("{}{}", "{\"normalizer\":".repeat(5000), "}".repeat(5000));
    assert!(Tokenizer::from_json("x.json", deep.as_bytes()).is_err());
}

/// A byte that BPE would drop is an error, as in any vocabulary.
#[test]
fn missing_bytes() {
    let mut file = byte_level_file();
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("Z").unwrap();
    vocab.insert("no byte".to_owned(), id);
    let tokenizer = load(&file).unwrap();
    let error = tokenizer.encode(b"AZ").unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::NoMatch {
                at: 1,
                byte: b'Z',
                ..
            }
        ),
        "{error}"
    );
}

/// The content tells what a file is; long runs and long texts end.
#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    std::fs::write(&path, format!("\u{feff}\n {}", byte_level_file())).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.name(), "vocab.txt");
    for text in [" ".repeat(1 << 20) + "a", "ab".repeat(1 << 18)] {
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
    }
    let large = File::create(&path).unwrap();
    large.set_len(100 << 20).unwrap();
    let error = Tokenizer::from_file(&path).unwrap_err().to_string();
    assert!(error.contains("larger than 32 MiB"), "{error}");
}
