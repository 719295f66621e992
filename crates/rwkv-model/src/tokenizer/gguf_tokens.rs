//! The token list of a GGUF file whose `tokenizer.ggml.model` is `rwkv`.
//!
//! The converter escapes a token's bytes as Python's `repr` of a bytes object does, without `b'` and `'`.

use super::error::{TokenProblem, TokenizerError};
use super::python_literal;
use super::token_list::{MAX_ID, TokenList};

/// Values of `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const UNDEFINED: i64 = 0;
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    pub(super) const UNUSED: i64 = 5;
    pub(super) const BYTE: i64 = 6;
}

/// The tokens that are text, sorted by bytes; their ids are their places in `tokens`.
pub(super) fn parse<'a>(
    tokens: impl IntoIterator<Item = &'a [u8]>,
    types: &[i64],
) -> Result<TokenList, TokenizerError> {
    let bad_token = |id, problem| TokenizerError::GgufToken { id, problem };
    let mut tokens = tokens.into_iter();
    let mut list = TokenList::default();
    for (place, &token_type) in types.iter().enumerate() {
        let Some(text) = tokens.next() else {
            return Err(TokenizerError::GgufTypes {
                tokens: place,
                types: types.len(),
            });
        };
        let id = u32::try_from(place).ok().filter(|&id| id <= MAX_ID);
        let id = id.ok_or_else(|| bad_token(place, TokenProblem::TooMany))?;
        add(id, text, token_type, &mut list).map_err(|problem| bad_token(place, problem))?;
    }
    let extra = tokens.count();
    if extra > 0 {
        return Err(TokenizerError::GgufTypes {
            tokens: types.len() + extra,
            types: types.len(),
        });
    }
    if list.tokens.is_empty() {
        return Err(TokenizerError::NoTokens {
            name: "gguf".to_owned(),
        });
    }
    let ids: Vec<u32> = list.tokens.iter().map(|token| token.id).collect();
    list.sort().map_err(|(index, problem)| {
        bad_token(ids.get(index).map_or(index, |&id| id as usize), problem)
    })?;
    Ok(list)
}

fn add(id: u32, text: &[u8], token_type: i64, list: &mut TokenList) -> Result<(), TokenProblem> {
    match token_type {
        token_type::UNDEFINED | token_type::UNKNOWN | token_type::CONTROL | token_type::UNUSED => {
            Ok(())
        }
        token_type::NORMAL | token_type::USER_DEFINED => list.push_with(id, |pool| {
            python_literal::unescape_bytes(text, pool).map_err(TokenProblem::Literal)
        }),
        token_type::BYTE => list.push_with(id, |pool| {
            pool.push(byte_token(text).ok_or(TokenProblem::NotAByte)?);
            Ok(())
        }),
        other => Err(TokenProblem::Type(other)),
    }
}

/// `<0x0A>`, or one byte that may be escaped.
fn byte_token(text: &[u8]) -> Option<u8> {
    if let [b'<', b'0', b'x', high, low, b'>'] = *text {
        let digit = |digit| char::from(digit).to_digit(16);
        return u8::try_from(digit(high)? * 16 + digit(low)?).ok();
    }
    let mut bytes = Vec::new();
    python_literal::unescape_bytes(text, &mut bytes).ok()?;
    if let [byte] = *bytes {
        Some(byte)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]

    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::{LiteralError, Tokenizer};

    fn tokenizer(tokens: &[&str], types: &[i64]) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_gguf_tokens(tokens.iter().map(|token| token.as_bytes()), types)
    }

    #[test]
    fn good_lists() {
        let check = |tokens: &[&str], types: &[i64], expected: &[Option<&[u8]>], end_of_text| {
            let tokenizer = tokenizer(tokens, types).unwrap();
            let found: Vec<_> = (0..tokenizer.vocab_size() as u32)
                .map(|id| tokenizer.token(id))
                .collect();
            assert_eq!(found, expected, "{tokens:?}");
            assert_eq!(tokenizer.end_of_text(), end_of_text, "{tokens:?}");
            assert_eq!(tokenizer.name(), "gguf");
        };
        check(
            &["<s>", "a", "[PAD2]"],
            &[3, 1, 5],
            &[None, Some(b"a"), None],
            Some(0),
        );
        check(
            &["<s>", r"\n\t\r\\\'", "\"'"],
            &[3, 1, 1],
            &[None, Some(b"\n\t\r\\'"), Some(b"\"'")],
            Some(0),
        );
        check(
            &["<s>", r"\xe4\xb8", "é"],
            &[3, 1, 1],
            &[None, Some(b"\xe4\xb8"), Some("é".as_bytes())],
            Some(0),
        );
        check(
            &["", "<0x0A>", r"\x41", "B"],
            &[0, 6, 6, 6],
            &[None, Some(b"\n"), Some(b"A"), Some(b"B")],
            Some(0),
        );
        check(&["a", "b"], &[1, 4], &[Some(b"a"), Some(b"b")], None);
        // What a text says about control and unused tokens is text like any other.
        let special = tokenizer(&["<s>", "<", "s", ">", "[PAD4]"], &[3, 1, 1, 1, 5]).unwrap();
        assert_eq!(special.encode(b"<s>").unwrap(), [1, 2, 3]);
    }

    #[test]
    fn bad_lists() {
        let check = |tokens: &[&str], types: &[i64], expected: TokenizerError| {
            assert_eq!(
                tokenizer(tokens, types).unwrap_err().to_string(),
                expected.to_string(),
                "{tokens:?} {types:?}"
            );
        };
        let bad = |id, problem| TokenizerError::GgufToken { id, problem };
        check(
            &[],
            &[],
            TokenizerError::NoTokens {
                name: "gguf".into(),
            },
        );
        check(
            &["<s>"],
            &[3],
            TokenizerError::NoTokens {
                name: "gguf".into(),
            },
        );
        check(
            &["<s>", "a", "b"],
            &[3],
            TokenizerError::GgufTypes {
                tokens: 3,
                types: 1,
            },
        );
        check(
            &["<s>"],
            &[3, 1],
            TokenizerError::GgufTypes {
                tokens: 1,
                types: 2,
            },
        );
        check(&["<s>", ""], &[3, 1], bad(1, TokenProblem::Empty));
        check(
            &["<s>", "a", "b", "a"],
            &[3, 1, 1, 1],
            bad(3, TokenProblem::RepeatedText { other: 1 }),
        );
        check(
            &["<s>", r"a\x4"],
            &[3, 1],
            bad(1, TokenProblem::Literal(LiteralError::Escape { at: 1 })),
        );
        check(
            &["<s>", r"\u0041"],
            &[3, 1],
            bad(1, TokenProblem::Literal(LiteralError::Escape { at: 0 })),
        );
        check(&["<s>", "a"], &[3, 7], bad(1, TokenProblem::Type(7)));
        check(
            &["<s>", "a"],
            &[3, i64::MIN],
            bad(1, TokenProblem::Type(i64::MIN)),
        );
        check(&["<s>", "ab"], &[3, 6], bad(1, TokenProblem::NotAByte));
        check(&["<s>", "<0x1>"], &[3, 6], bad(1, TokenProblem::NotAByte));
        check(
            &["<s>", &"a".repeat(1025)],
            &[3, 1],
            bad(1, TokenProblem::TooLong),
        );
        let many = vec!["<s>"; 1 << 20 | 1];
        check(
            &many,
            &vec![3; many.len()],
            bad(1 << 20, TokenProblem::TooMany),
        );
    }

    proptest! {
        #[test]
        fn hostile(tokens: Vec<(Vec<u8>, i8)>) {
            let types: Vec<i64> = tokens.iter().map(|&(_, kind)| i64::from(kind)).collect();
            let _ = Tokenizer::from_gguf_tokens(tokens.iter().map(|(text, _)| text.as_slice()), &types);
            let _ = Tokenizer::from_gguf_tokens(tokens.iter().map(|(text, _)| text.as_slice()), &vec![1; types.len()]);
        }
    }
}
