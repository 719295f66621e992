//! Hugging Face's `tokenizer.json`, read by their crate `tokenizers`: the byte-level BPE of RWKV-4's Pile models
//! (GPT-NeoX 20B's vocabulary) and its kin.
//!
//! A byte-level vocabulary writes each byte as one printable character (the table of GPT-2), so every token stands for
//! certain bytes. Vocabularies of other kinds have tokens whose text depends on their neighbours and are refused.

use super::{
    error::TokenizerError,
    token_list::{MAX_ID, TokenList},
};
use std::{collections::HashMap, fmt, sync::Arc};
use tokenizers::{AddedToken, DecoderWrapper};

/// Larger files are no tokenizers: GPT-NeoX's has 2 MB, the largest published ones about 40 MB.
const LARGEST: usize = 64 << 20;

/// Texts of special tokens that end a document, the more usual first.
const END_OF_TEXT: [&str; 3] = ["<|endoftext|>", "</s>", "<s>"];

/// The encoder of a `tokenizer.json`.
#[derive(Clone)]
pub(super) struct HuggingFace(Arc<tokenizers::Tokenizer>);

/// What a `tokenizer.json` holds: its encoder, the bytes of its tokens, one more than the highest id, and the token that
/// ends a text.
pub(super) struct Contents {
    pub(super) encoder: HuggingFace,
    pub(super) tokens: TokenList,
    pub(super) size: usize,
    pub(super) end_of_text: Option<u32>,
}

/// Whether a file looks like JSON rather than a vocabulary of lines.
pub(super) fn is_json(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    text.trim_ascii_start().first() == Some(&b'{')
}

/// Parses a `tokenizer.json`, which messages call `name`.
pub(super) fn parse(name: &str, text: &[u8]) -> Result<Contents, TokenizerError> {
    let wrong = |problem: String| TokenizerError::HuggingFace {
        name: name.to_owned(),
        problem: problem.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    if text.len() > LARGEST {
        return Err(wrong(format!(
            "it has {} bytes, more than {LARGEST}",
            text.len()
        )));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let parsed = tokenizers::Tokenizer::from_bytes(text).map_err(|e| wrong(e.to_string()))?;
    let byte_level = match parsed.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => true,
        Some(DecoderWrapper::Sequence(sequence)) => sequence
            .get_decoders()
            .iter()
            .any(|d| matches!(d, DecoderWrapper::ByteLevel(_))),
        _ => false,
    };
    if !byte_level {
        return Err(wrong(
            "only byte-level vocabularies are supported, as GPT-NeoX's".to_owned(),
        ));
    }
    let added = parsed.get_added_tokens_decoder();
    let mut vocabulary: Vec<(u32, String)> = parsed
        .get_vocab(true)
        .into_iter()
        .map(|(text, id)| (id, text))
        .collect();
    vocabulary.sort_unstable();
    let bytes_of = byte_alphabet();
    let mut tokens = TokenList::default();
    let mut size = 0;
    for (id, text) in &vocabulary {
        if *id > MAX_ID {
            return Err(wrong(format!("it has the id {id}, more than {MAX_ID}")));
        }
        size = size.max(*id as usize + 1);
        let bytes = match added.get(id) {
            // A special token is a mark, not text.
            Some(AddedToken { special: true, .. }) => continue,
            Some(_) => text.clone().into_bytes(),
            None => text
                .chars()
                .map(|c| bytes_of.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| text.clone().into_bytes()),
        };
        if bytes.is_empty() {
            continue;
        }
        tokens
            .push_with(*id, |pool| {
                pool.extend_from_slice(&bytes);
                Ok(())
            })
            .map_err(|problem| wrong(format!("token {id}: {problem}")))?;
    }
    if tokens.tokens.is_empty() {
        return Err(TokenizerError::NoTokens {
            name: name.to_owned(),
        });
    }
    let special = |text: &str| {
        let id = parsed.token_to_id(text)?;
        added.get(&id).filter(|t| t.special).map(|_| id)
    };
    Ok(Contents {
        end_of_text: END_OF_TEXT.into_iter().find_map(special),
        encoder: HuggingFace(Arc::new(parsed)),
        tokens,
        size,
    })
}

impl HuggingFace {
    /// The ids of `text`, without any that a template adds around it.
    pub(super) fn encode(&self, name: &str, text: &[u8]) -> Result<Vec<u32>, TokenizerError> {
        let text = std::str::from_utf8(text).map_err(|e| TokenizerError::NotUtf8 {
            name: name.to_owned(),
            at: e.valid_up_to(),
        })?;
        match self.0.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(problem) => Err(TokenizerError::HuggingFace {
                name: name.to_owned(),
                problem: problem.to_string(),
            }),
        }
    }
}

impl fmt::Debug for HuggingFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HuggingFace")
    }
}

/// The byte that a character stands for (`bytes_to_unicode` of GPT-2): printable bytes of Latin-1 are themselves, the
/// others are the characters from U+0100 on, in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                return (char::from(byte), byte);
            }
            let place = next;
            next += 1;
            (char::from_u32(place).unwrap_or_default(), byte)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::{TextDecoder, Tokenizer};
    use proptest::prelude::*;
    use serde_json::json;

    /// A byte-level BPE with all bytes, a few merges, one mark and one added run of spaces.
    fn file(decoder: &str) -> Vec<u8> {
        let mut alphabet: Vec<(u8, char)> = super::byte_alphabet()
            .into_iter()
            .map(|(c, b)| (b, c))
            .collect();
        alphabet.sort_unstable();
        let mut vocabulary: Vec<String> = alphabet.iter().map(|(_, c)| c.to_string()).collect();
        let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ã", "©")];
        vocabulary.extend(merges.map(|(a, b)| format!("{a}{b}")));
        let end = vocabulary.len();
        let vocabulary: serde_json::Map<_, _> = vocabulary
            .into_iter()
            .zip(0..)
            .map(|(text, id)| (text, json!(id)))
            .collect();
        let added = |id: usize, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special})
        };
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(end, "<|endoftext|>", true), added(end + 1, "    ", false)],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "post_processor": null,
            "decoder": {"type": decoder, "add_prefix_space": false, "trim_offsets": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "vocab": vocabulary,
                "merges": merges.map(|(a, b)| format!("{a} {b}"))},
        });
        serde_json::to_vec(&json).unwrap()
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes("test.json", &file("ByteLevel")).unwrap()
    }

    #[test]
    fn merges_and_marks() {
        let t = tokenizer();
        let pieces = |text: &str| -> Vec<String> {
            let ids = t.encode(text.as_bytes()).unwrap();
            ids.iter()
                .map(|id| String::from_utf8_lossy(t.token(*id).unwrap_or(b"#")).into_owned())
                .collect()
        };
        assert_eq!(
            pieces("hello world"),
            ["hell", "o", " w", "o", "r", "l", "d"]
        );
        assert_eq!(pieces("é"), ["é"]);
        assert_eq!(pieces("a    b<|endoftext|>"), ["a", "    ", "b", "#"]);
        assert_eq!(t.end_of_text(), Some(261));
        assert_eq!(t.vocab_size(), 263);
        assert!(t.is_uncounted(u32::from(b'0')));
    }

    proptest! {
        #[test]
        fn text_comes_back(text in "\\PC{0,40}") {
            let t = tokenizer();
            let ids = t.encode(text.as_bytes()).unwrap();
            // Marks stand for no text.
            let text = text.replace("<|endoftext|>", "");
            prop_assert_eq!(t.decode(&ids), text.as_bytes());
            let mut decoder = TextDecoder::new();
            let mut streamed = String::new();
            for id in &ids {
                streamed += decoder.push(t.token(*id).unwrap_or_default());
            }
            streamed += decoder.finish();
            prop_assert_eq!(streamed, text);
        }
    }

    #[test]
    fn refused() {
        #[track_caller]
        fn check(bytes: &[u8], part: &str) {
            let error = Tokenizer::from_bytes("x.json", bytes)
                .unwrap_err()
                .to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        check(b"{}", "x.json");
        check(b"{\"model\": 1}", "x.json");
        check(
            &[b"{\"a\":".repeat(100_000), b"1".to_vec()].concat(),
            "x.json",
        );
        check(&file("ByteLevel")[..2000], "x.json");
        check(&file("Metaspace"), "x.json");
        let wordpiece = file("ByteLevel");
        let text = String::from_utf8(wordpiece).unwrap();
        check(text.replace(":260", ":4000000000").as_bytes(), "x.json");
        let error = tokenizer().encode(b"ab\xff").unwrap_err().to_string();
        assert!(error.contains("byte 2"), "{error}");
    }
}
