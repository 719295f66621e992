//! A vocabulary as GGUF files have it: escaped tokens and their types.

use crate::{
    Tokenizer,
    files::{Field, GgufWriter, WriteError},
};

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// Sets the keys of a vocabulary for a model of `rows` tokens.
pub(super) fn set(
    plan: &mut GgufWriter,
    tokenizer: &Tokenizer,
    rows: usize,
) -> Result<(), WriteError> {
    let mut tokens = Vec::with_capacity(rows);
    let mut types = Vec::with_capacity(rows);
    for id in (0u32..).take(rows) {
        let (token, kind) = match tokenizer.token(id) {
            Some(bytes) => (escaped(bytes), NORMAL),
            None if id == 0 => (b"<s>".to_vec(), CONTROL),
            None => (format!("[PAD{id}]").into_bytes(), UNUSED),
        };
        tokens.push(Field::String(token.into()));
        types.push(kind);
    }
    plan.set("tokenizer.ggml.model", "rwkv")?;
    plan.set(
        "tokenizer.ggml.tokens",
        Field::Array(crate::files::ValueKind::String, tokens),
    )?;
    plan.set("tokenizer.ggml.token_type", Field::integers(types))?;
    plan.set("tokenizer.ggml.bos_token_id", 0u32)?;
    plan.set("tokenizer.ggml.eos_token_id", 0u32)?;
    // What llama.cpp's converter adds for the World vocabulary: chat ends a turn at its token of two newlines.
    if tokenizer.token(WORLD_BLANK_LINE) == Some(b"\n\n") {
        plan.set("tokenizer.ggml.eot_token_id", WORLD_BLANK_LINE)?;
        plan.set("tokenizer.chat_template", "rwkv-world")?;
    }
    Ok(())
}

/// The World vocabulary's token of two newlines.
const WORLD_BLANK_LINE: u32 = 261;

/// Bytes as Python's `repr` of a bytes object writes them, without `b` and quotes: single quotes are around it unless
/// it has single quotes and no double ones.
fn escaped(bytes: &[u8]) -> Vec<u8> {
    let double = bytes.contains(&b'\'') && !bytes.contains(&b'"');
    let quote = if double { b'"' } else { b'\'' };
    let mut out = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => out.extend(b"\\\\"),
            b'\t' => out.extend(b"\\t"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            _ if byte == quote => out.extend([b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            _ => out.extend(format!("\\x{byte:02x}").bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::format_collect, reason = "tests")]

    use super::*;
    use crate::files::Checkpoint;
    use proptest::prelude::*;

    #[test]
    fn escapes() {
        let check = |bytes: &[u8], want: &str| {
            assert_eq!(String::from_utf8(escaped(bytes)).unwrap(), want);
        };
        // What Python 3 prints.
        check(b"it's", "it's");
        check(b"\"'", "\"\\'");
        check(b"a\"b", "a\"b");
        check(
            b"\0\x1f \x7f\xff\\\t\r\n",
            "\\x00\\x1f \\x7f\\xff\\\\\\t\\r\\n",
        );
    }

    /// The vocabulary of a file with `rows` tokens that `tokenizer` was written to.
    fn read_back(tokenizer: &Tokenizer, rows: usize) -> Tokenizer {
        let mut plan = GgufWriter::new();
        set(&mut plan, tokenizer, rows).unwrap();
        let file = plan.begin(Vec::new()).unwrap().finish().unwrap();
        let file = Checkpoint::from_vec("vocabulary", file).unwrap();
        let metadata = file.metadata();
        let types = metadata.integers("tokenizer.ggml.token_type").unwrap();
        let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!((tokens.len(), types.len()), (rows, rows));
        Tokenizer::from_gguf_tokens(tokens, &types).unwrap()
    }

    #[test]
    fn world_and_bytes() {
        for (tokenizer, rows) in [
            (Tokenizer::world().unwrap(), 65_536),
            (Tokenizer::bytes(), 256),
        ] {
            let back = read_back(&tokenizer, rows);
            assert_eq!(back.vocab_size(), rows);
            assert_eq!(back.end_of_text(), tokenizer.end_of_text());
            for id in (0..).take(rows) {
                assert_eq!(back.token(id), tokenizer.token(id), "{id}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_tokens(tokens in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 1..6), 1..20)) {
            let text: String = tokens.iter().enumerate().map(|(i, token)| {
                let literal: String = token.iter().map(|b| format!("\\x{b:02x}")).collect();
                format!("{} b'{literal}' {}\n", 2 * i + 1, token.len())
            }).collect();
            let tokenizer = Tokenizer::from_vocab_text("x", text.as_bytes()).unwrap();
            let back = read_back(&tokenizer, 50);
            for id in 0..50 {
                prop_assert_eq!(back.token(id), tokenizer.token(id));
            }
        }
    }
}
