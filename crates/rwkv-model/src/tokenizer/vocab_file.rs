//! Vocabulary files in the World syntax: `ID literal LENGTH` a line.
//!
//! The literal may contain spaces, so a line is split at its first and its last space.

use super::error::{TokenProblem, TokenizerError};
use super::python_literal;
use super::token_list::{MAX_ID, TokenList};

/// Reads all lines; the list comes back sorted by bytes. `file` stands in errors.
pub(super) fn parse(file: &str, text: &[u8]) -> Result<TokenList, TokenizerError> {
    let bad_line = |index, problem| TokenizerError::VocabLine {
        file: file.to_owned(),
        line: index + 1,
        problem,
    };
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Err(TokenizerError::NoTokens {
            name: file.to_owned(),
        });
    }
    let mut list = TokenList::default();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        parse_line(line, &mut list).map_err(|problem| bad_line(index, problem))?;
    }
    // Every line is a token: the place in the list is the line.
    list.sort()
        .map_err(|(index, problem)| bad_line(index, problem))?;
    Ok(list)
}

fn parse_line(line: &[u8], list: &mut TokenList) -> Result<(), TokenProblem> {
    let space = |byte: &u8| *byte == b' ';
    let (first, last) = line
        .iter()
        .position(space)
        .zip(line.iter().rposition(space))
        .ok_or(TokenProblem::Fields)?;
    let id = line.get(..first).and_then(number).ok_or(TokenProblem::Id)?;
    let id = u32::try_from(id)
        .ok()
        .filter(|id| (1..=MAX_ID).contains(id))
        .ok_or(TokenProblem::Id)?;
    let literal = line.get(first + 1..last).ok_or(TokenProblem::Fields)?;
    let declared = line
        .get(last + 1..)
        .and_then(number)
        .ok_or(TokenProblem::Length)?;
    list.push_with(id, |pool| {
        let start = pool.len();
        python_literal::parse(literal, pool).map_err(TokenProblem::Literal)?;
        let actual = pool.len() - start;
        if actual == declared {
            Ok(())
        } else {
            Err(TokenProblem::WrongLength { declared, actual })
        }
    })
}

/// Decimal digits and nothing else: no sign, no spaces.
fn number(digits: &[u8]) -> Option<usize> {
    if digits.iter().all(u8::is_ascii_digit) {
        std::str::from_utf8(digits).ok()?.parse().ok()
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

    use super::TokenProblem::{
        Empty, Fields, Id, Length, Literal, RepeatedId, RepeatedText, TooLong, WrongLength,
    };
    use super::*;
    use crate::tokenizer::{LiteralError, Tokenizer};

    #[test]
    fn good_files() {
        let check = |text: &str, expected: &[(u32, &[u8])]| {
            let tokenizer = Tokenizer::from_vocab_text("vocab.txt", text.as_bytes()).unwrap();
            let size = tokenizer.vocab_size() as u32;
            let tokens: Vec<_> = (0..size)
                .filter_map(|id| Some((id, tokenizer.token(id)?)))
                .collect();
            assert_eq!(tokens, expected, "{text:?}");
            assert_eq!(size, expected.last().unwrap().0 + 1);
            assert_eq!(tokenizer.end_of_text(), Some(0));
            assert_eq!(tokenizer.name(), "vocab.txt");
        };
        check("1 'a' 1\n2 'b' 1\n", &[(1, b"a"), (2, b"b")]);
        check("1 'a' 1\n2 'b' 1", &[(1, b"a"), (2, b"b")]);
        check("1 'a' 1\r\n2 'b' 1\r\n", &[(1, b"a"), (2, b"b")]);
        check("7 ' ' 1\n3 ' a b ' 5\n", &[(3, b" a b "), (7, b" ")]);
        check(r"9 '\x80' 2", &[(9, &[0xc2, 0x80])]);
        check(r"9 b'\x80' 1", &[(9, &[0x80])]);
        check("9 \"don't\" 5", &[(9, b"don't")]);
        check("9 '中' 3", &[(9, "中".as_bytes())]);
        check("1048575 'a' 1", &[(1_048_575, b"a")]);
    }

    #[test]
    fn bad_files() {
        let check = |text: &[u8], line: usize, problem: TokenProblem| {
            let error = Tokenizer::from_vocab_text("vocab.txt", text).unwrap_err();
            let expected = TokenizerError::VocabLine {
                file: "vocab.txt".into(),
                line,
                problem,
            };
            assert_eq!(
                error.to_string(),
                expected.to_string(),
                "{:?}",
                String::from_utf8_lossy(text)
            );
        };
        check(b"1 'a' 1\nx", 2, Fields);
        check(b"1 'a'", 1, Fields);
        check(b"1 'a' 1\n\n2 'b' 1\n", 2, Fields);
        check(b"1 'a' 1\n\n", 2, Fields);
        for id in [
            "",
            "x",
            "0",
            "-1",
            "+1",
            "1048576",
            "4294967297",
            "99999999999999999999999",
        ] {
            check(format!("{id} 'a' 1").as_bytes(), 1, Id);
        }
        for length in ["", "x", "-1", "1.0", "99999999999999999999999", "1\t"] {
            check(format!("1 'a' {length}").as_bytes(), 1, Length);
        }
        check(
            b"1 'a' 2",
            1,
            WrongLength {
                declared: 2,
                actual: 1,
            },
        );
        check(
            b"1 '\xe4\xb8\xad' 1",
            1,
            WrongLength {
                declared: 1,
                actual: 3,
            },
        );
        check(b"1 '' 0", 1, Empty);
        check(
            format!("1 '{}' 1025", "a".repeat(1025)).as_bytes(),
            1,
            TooLong,
        );
        check(b"1 'a' 1\n2  'b' 1", 2, Literal(LiteralError::Quotes));
        check(b"1 '\xff' 1", 1, Literal(LiteralError::RawBytes));
        check(br"1 '\x' 1", 1, Literal(LiteralError::Escape { at: 0 }));
        check(b"5 'a' 1\n6 'b' 1\n5 'c' 1", 3, RepeatedId { id: 5 });
        check(b"5 'a' 1\n6 'b' 1\n7 b'a' 1", 3, RepeatedText { other: 5 });
        for empty in [&b""[..], b"\n"] {
            let error = Tokenizer::from_vocab_text("vocab.txt", empty).unwrap_err();
            assert_eq!(
                error.to_string(),
                "vocabulary vocab.txt has no tokens: is the file complete?"
            );
        }
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small_vocab.txt");
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the vocabulary file ")
                && error.contains("small_vocab.txt"),
            "{error}"
        );
        std::fs::write(&path, "1 'a' 1").unwrap();
        assert_eq!(
            Tokenizer::from_file(&path).unwrap().name(),
            "small_vocab.txt"
        );
        std::fs::write(&path, "1 'a' 3").unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            "small_vocab.txt, line 1: the token has 1 bytes, its length says 3 (a vocabulary file has one `ID 'text' LENGTH` a line)"
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Tokenizer::from_vocab_text("x", &text);
        }

        /// Nearly right files reach deeper than noise.
        #[test]
        fn hostile_lines(text in r#"([0-9]{0,8} b?['"]([ a'"\\xuU0-9]|\\x[0-9a-f]{2}|\\[nrt0-9]){0,5}['"]? [0-9]{0,2}\r?\n?){0,5}"#) {
            let _ = Tokenizer::from_vocab_text("x", text.as_bytes());
        }

        /// Any cut and any changed byte gives an error or a vocabulary, and the cut end is never taken for a token.
        #[test]
        fn damaged(cut in 0usize..40, at in 0usize..40, byte: u8) {
            let whole = b"1 'a' 1\n2 ' b' 2\n33 b'\\xff' 1\n4 \"it's\" 4".to_vec();
            let _ = Tokenizer::from_vocab_text("x", &whole[..cut]);
            let mut changed = whole;
            changed[at] = byte;
            let _ = Tokenizer::from_vocab_text("x", &changed);
        }
    }
}
