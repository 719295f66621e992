//! Text from bytes that arrive in pieces.

/// Turns token bytes into text as they come, never half a character.
///
/// Tokens may end inside a character. Its bytes wait here until it is whole; bytes that are not UTF-8 become U+FFFD.
/// All texts together are what [`String::from_utf8_lossy`] makes of all bytes together, however they were cut.
#[derive(Clone, Debug, Default)]
pub struct TextDecoder {
    /// The beginning of a character, at most 3 bytes (while `push` runs, also what came after it).
    pending: Vec<u8>,
    text: String,
}

impl TextDecoder {
    /// A decoder at the beginning of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes; returns the text that is complete now and was not returned before.
    pub fn push(&mut self, bytes: &[u8]) -> &str {
        self.text.clear();
        self.pending.extend_from_slice(bytes);
        let mut incomplete = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_beginning(invalid) {
                incomplete = invalid.len();
            } else if !invalid.is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - incomplete);
        &self.text
    }

    /// Bytes of a character that is not complete yet, at most 3.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Ends the text: a character that is still incomplete becomes U+FFFD. The decoder can then take another text.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// Whether more bytes could make a character of these.
fn is_beginning(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts() {
        // Pieces, and what each makes printable; the last is what `finish` adds.
        let check = |pieces: &[&[u8]], expected: &[&str]| {
            let mut decoder = TextDecoder::new();
            let mut texts: Vec<String> = pieces
                .iter()
                .map(|piece| decoder.push(piece).to_owned())
                .collect();
            texts.push(decoder.finish().to_owned());
            assert_eq!(texts, expected, "{pieces:?}");
            assert_eq!(decoder.push(b"a"), "a", "ready for another text");
        };
        check(&[], &[""]);
        check(&[b"abc", b""], &["abc", "", ""]);
        check(&[b"\xe4", b"\xb8", b"\xad"], &["", "", "中", ""]);
        check(&[b"a\xf0\x9f\x98", b"\x80b"], &["a", "😀b", ""]);
        check(&[b"\xe4\xb8", b"A"], &["", "\u{fffd}A", ""]);
        check(&[b"\xe4\xb8A\xe4"], &["\u{fffd}A", "\u{fffd}"]);
        check(&[b"\xf0\x9f\x98"], &["", "\u{fffd}"]);
        check(
            &[b"\xff\xff", b"\x80"],
            &["\u{fffd}\u{fffd}", "\u{fffd}", ""],
        );
        // A surrogate and an overlong form: no character begins so, nothing is held back.
        check(&[b"\xed\xa0"], &["\u{fffd}\u{fffd}", ""]);
        check(&[b"\xc0", b"\xaf"], &["\u{fffd}", "\u{fffd}", ""]);
        check(&[b"\xed", b"\xa0"], &["", "\u{fffd}\u{fffd}", ""]);
    }

    /// Bytes that form, cut and spoil characters more often than random ones do.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let edges = prop::sample::select(
            b"a\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xdf\xe0\xe4\xed\xef\xf0\xf4\xf5\xff".to_vec(),
        );
        let character = any::<char>().prop_map(|character| character.to_string().into_bytes());
        let piece = prop_oneof![
            edges.prop_map(|byte| vec![byte]),
            character,
            any::<u8>().prop_map(|byte| vec![byte])
        ];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_from_utf8_lossy(bytes in bytes(), cuts: [usize; 6]) {
            let mut cuts = cuts.map(|cut| cut % (bytes.len() + 1));
            cuts.sort_unstable();
            let mut decoder = TextDecoder::new();
            let mut text = String::new();
            let mut start = 0;
            for end in cuts.into_iter().chain([bytes.len()]) {
                text += decoder.push(&bytes[start..end]);
                // At once: all that no later byte can change.
                let so_far = &bytes[..end];
                let held = (0..4).rev().find(|&held| held <= end && is_beginning(&so_far[end - held..])).unwrap_or(0);
                prop_assert_eq!(&text, &String::from_utf8_lossy(&so_far[..end - held]));
                start = end;
            }
            text += decoder.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
