//! Ending a text where one of the caller's stop strings appears.

/// Filters a text that arrives in pieces: passes on what comes before the first stop string, and nothing of it or
/// after it.
///
/// The first stop string is the one that is complete first; of several that are complete with the same character, the
/// longest. So the result does not depend on how the text was cut, and the caller can stop generating at once. Only
/// text that may still become a stop string is held back.
///
/// ```
/// use rwkv_model::tokenizer::StopStrings;
///
/// let mut stop = StopStrings::new(["\n\nUser:"]);
/// assert_eq!(stop.push("Fine.\n").text, "Fine.");
/// assert_eq!(stop.push("\nThank").text, "\n\nThank");
/// let last = stop.push(" you!\n\nUser: And");
/// assert_eq!((last.text, last.matched), (" you!", Some(0)));
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<Stop>,
    /// `buffer[..ready]` was returned by the last call; the rest is held back.
    buffer: String,
    ready: usize,
    matched: Option<usize>,
}

/// What a piece of text makes safe to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopOutput<'a> {
    /// Text before any stop string, not returned before.
    pub text: &'a str,
    /// The stop string that ended the text, by its place among those given to [`StopStrings::new`].
    pub matched: Option<usize>,
}

impl StopStrings {
    /// Watches for `stops`. Empty ones are ignored; without any, all text passes.
    pub fn new(stops: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let stops = stops.into_iter().enumerate();
        let stops = stops
            .filter_map(|(place, text)| Stop::new(place, text.as_ref().as_bytes()))
            .collect();
        Self {
            stops,
            buffer: String::new(),
            ready: 0,
            matched: None,
        }
    }

    /// Takes the next piece of text. After a match nothing more comes out, and the match is reported again.
    pub fn push(&mut self, text: &str) -> StopOutput<'_> {
        self.buffer.drain(..self.ready);
        self.ready = 0;
        if self.matched.is_none() {
            let held = self.buffer.len();
            self.buffer.push_str(text);
            for (&byte, end) in text.as_bytes().iter().zip(held + 1..) {
                let mut longest = 0;
                for stop in &mut self.stops {
                    if stop.advance(byte) && stop.text.len() > longest {
                        longest = stop.text.len();
                        self.matched = Some(stop.place);
                    }
                }
                if self.matched.is_some() {
                    // What matched until here is in the buffer: it was held back.
                    self.buffer.truncate(end - longest);
                    break;
                }
            }
            let hold = if self.matched.is_some() {
                0
            } else {
                self.stops.iter().map(|stop| stop.met).max().unwrap_or(0)
            };
            self.ready = self.buffer.len() - hold;
        }
        self.output()
    }

    /// Ends the text: releases what was held back, unless a stop string matched. Another text can follow.
    pub fn finish(&mut self) -> StopOutput<'_> {
        self.buffer.drain(..self.ready);
        self.ready = self.buffer.len();
        for stop in &mut self.stops {
            stop.met = 0;
        }
        let matched = self.matched.take();
        StopOutput {
            matched,
            ..self.output()
        }
    }

    fn output(&self) -> StopOutput<'_> {
        StopOutput {
            text: self.buffer.get(..self.ready).unwrap_or_default(),
            matched: self.matched,
        }
    }
}

/// One stop string and how much of it the text so far ends with (Knuth, Morris and Pratt: linear whatever the texts).
#[derive(Clone, Debug)]
struct Stop {
    place: usize,
    /// Not empty.
    text: Vec<u8>,
    /// By bytes met, less one: the longest shorter beginning of `text` that those bytes end with.
    borders: Vec<usize>,
    /// Bytes of `text` met so far. They begin and, between pieces, end with whole characters, because the text does.
    met: usize,
}

impl Stop {
    fn new(place: usize, text: &[u8]) -> Option<Self> {
        let (_, after_first) = text.split_first()?;
        let mut stop = Self {
            place,
            text: text.to_vec(),
            borders: vec![0],
            met: 0,
        };
        // The beginnings that the string's own rest ends with.
        for &byte in after_first {
            stop.advance(byte);
            stop.borders.push(stop.met);
        }
        stop.met = 0;
        Some(stop)
    }

    /// Takes the text's next byte; whether the stop string is complete now.
    fn advance(&mut self, byte: u8) -> bool {
        while self.text.get(self.met) != Some(&byte) {
            let Some(shorter) = self.met.checked_sub(1) else {
                return false;
            };
            self.met = self.borders.get(shorter).copied().unwrap_or(0);
        }
        self.met += 1;
        self.met == self.text.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn streams() {
        // Pieces, and what each lets through; the last is what `finish` releases.
        let check = |stops: &[&str], pieces: &[&str], expected: &[&str], matched: Option<usize>| {
            let mut filter = StopStrings::new(stops);
            // The second text finds the filter as the first did.
            for _ in 0..2 {
                let mut texts: Vec<String> = pieces
                    .iter()
                    .map(|piece| filter.push(piece).text.to_owned())
                    .collect();
                assert_eq!(filter.push("").matched, matched, "{stops:?} {pieces:?}");
                let last = filter.finish();
                assert_eq!(last.matched, matched, "{stops:?} {pieces:?}");
                texts.push(last.text.to_owned());
                assert_eq!(texts, expected, "{stops:?} {pieces:?}");
            }
        };
        check(&[], &["abc", "d"], &["abc", "d", ""], None);
        check(&[""], &["abc"], &["abc", ""], None);
        check(&["", "b"], &["abc"], &["a", ""], Some(1));
        check(
            &["stop"],
            &["a st", "op b", "c"],
            &["a ", "", "", ""],
            Some(0),
        );
        check(
            &["stop"],
            &["a st", "ay sto"],
            &["a ", "stay ", "sto"],
            None,
        );
        check(
            &["\n\nUser:"],
            &["Hi\n", "\n\n", "User:"],
            &["Hi", "\n", "", ""],
            Some(0),
        );
        check(&["aab"], &["aaaa", "b"], &["aa", "", ""], Some(0));
        check(&["abac"], &["abab", "ac"], &["ab", "", ""], Some(0));
        // Complete first, wherever it began; then the longest.
        check(&["abc", "b"], &["abc"], &["a", ""], Some(1));
        check(&["bc", "abc", "c"], &["abc"], &["", ""], Some(1));
        check(&["c", "b"], &["abc"], &["a", ""], Some(1));
        // 中 and 串 share their first two bytes: held back are characters, not bytes.
        check(
            &["中国"],
            &["在中", "串", "在中国"],
            &["在", "中串", "在", ""],
            Some(0),
        );
        check(&["é"], &["aèé"], &["aè", ""], Some(0));
    }

    /// One character at a time, all stop strings looked for in all of the text.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for (end, character) in text.char_indices() {
            let seen = &text[..end + character.len_utf8()];
            let ending = stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| !stop.is_empty() && seen.ends_with(*stop));
            // The first of the longest.
            if let Some((place, stop)) =
                ending.min_by_key(|(_, stop)| std::cmp::Reverse(stop.len()))
            {
                return (seen[..seen.len() - stop.len()].to_owned(), Some(place));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_a_search_of_the_whole_text(
            stops in prop::collection::vec("[ab中串]{0,4}", 0..4),
            pieces in prop::collection::vec("[ab中串]{0,5}", 0..8),
        ) {
            let (expected, expected_match) = naive(&stops, &pieces.concat());
            let mut filter = StopStrings::new(&stops);
            let (mut text, mut pushed) = (String::new(), String::new());
            for piece in &pieces {
                pushed += piece;
                let output = filter.push(piece);
                text += output.text;
                if output.matched.is_none() {
                    // What is held back begins a stop string, and is the longest end of the text that does.
                    let begins = |start: &usize| pushed.is_char_boundary(*start)
                        && stops.iter().any(|stop| stop.starts_with(&pushed[*start..]));
                    let start = (0..pushed.len()).find(begins).unwrap_or(pushed.len());
                    prop_assert_eq!(&text, &pushed[..start]);
                }
            }
            let output = filter.finish();
            text += output.text;
            prop_assert_eq!((text, output.matched), (expected, expected_match));
        }
    }
}
