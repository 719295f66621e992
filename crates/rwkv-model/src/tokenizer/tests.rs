#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// The definition: at each place, the longest piece that the map holds.
fn naive(vocabulary: &HashMap<Vec<u8>, u32>, text: &[u8]) -> Result<Vec<u32>, usize> {
    let mut ids = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let end = (at + 1..=text.len())
            .rev()
            .find(|&end| vocabulary.contains_key(&text[at..end]))
            .ok_or(at)?;
        ids.push(vocabulary[&text[at..end]]);
        at = end;
    }
    Ok(ids)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn encodes_as_the_definition(
        tokens in prop::collection::hash_map(prop::collection::vec(0u8..4, 1..6), any::<u8>(), 1..30),
        all_bytes: bool,
        text in prop::collection::vec(0u8..4, 0..60),
    ) {
        let mut vocabulary = HashMap::new();
        // With all 256 bytes the root has its table, without them it is searched.
        let bytes = (0..=u8::MAX).filter(|_| all_bytes).map(|byte| vec![byte]);
        let mut next = 1;
        let mut file = String::new();
        for (token, gap) in bytes.map(|byte| (byte, 0)).chain(tokens) {
            if vocabulary.contains_key(&token) {
                continue;
            }
            next += u32::from(gap);
            write!(file, "{next} b'").unwrap();
            for byte in &token {
                write!(file, "\\x{byte:02x}").unwrap();
            }
            writeln!(file, "' {}", token.len()).unwrap();
            vocabulary.insert(token, next);
            next += 1;
        }
        let tokenizer = Tokenizer::from_vocab_text("random", file.as_bytes()).unwrap();
        match (naive(&vocabulary, &text), tokenizer.encode(&text)) {
            (Ok(expected), Ok(ids)) => {
                prop_assert_eq!(&ids, &expected);
                prop_assert_eq!(tokenizer.decode(&ids), text);
            }
            (Err(expected), Err(TokenizerError::NoMatch { at, byte, .. })) => {
                prop_assert_eq!((at, byte), (expected, text[expected]));
            }
            (expected, ids) => prop_assert!(false, "{:?} but {:?}", expected, ids),
        }
        for (token, id) in vocabulary {
            prop_assert_eq!(tokenizer.token(id), Some(token.as_slice()));
        }
    }

    #[test]
    fn bytes_are_ids(bytes: Vec<u8>) {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer.encode(&bytes).unwrap();
        prop_assert_eq!(&ids, &bytes.iter().copied().map(u32::from).collect::<Vec<_>>());
        prop_assert_eq!(tokenizer.decode(&ids), bytes);
    }
}

#[test]
fn bytes() {
    let tokenizer = Tokenizer::bytes();
    assert_eq!(
        (
            tokenizer.name(),
            tokenizer.vocab_size(),
            tokenizer.end_of_text()
        ),
        ("bytes", 256, None)
    );
    assert_eq!(
        (tokenizer.token(255), tokenizer.token(256)),
        (Some(&[255][..]), None)
    );
    assert_eq!(
        tokenizer.uncounted().collect::<Vec<_>>(),
        b"\t 0123456789".map(u32::from)
    );
}

#[test]
fn ids_without_text() {
    let tokenizer = Tokenizer::from_vocab_text("gaps", b"2 'a' 1\n4 'b' 1\n5 '' 0").unwrap_err();
    assert!(tokenizer.to_string().contains("line 3"), "{tokenizer}");
    let tokenizer = Tokenizer::from_vocab_text("gaps", b"2 'a' 1\n4 'b' 1").unwrap();
    assert_eq!(tokenizer.decode(&[0, 4, 3, 2, 5, u32::MAX, 4]), b"bab");
    assert_eq!(tokenizer.encode(b"").unwrap(), Vec::<u32>::new());
    let error = tokenizer.encode(b"ab\xffa").unwrap_err().to_string();
    let expected = "cannot encode byte 0xff at offset 2: no token of vocabulary gaps matches there (choose a vocabulary that has all 256 bytes)";
    assert_eq!(error, expected);
    assert_eq!(
        format!("{tokenizer:?}"),
        r#"Tokenizer { name: "gaps", vocab_size: 5, end_of_text: Some(0), .. }"#
    );
}
