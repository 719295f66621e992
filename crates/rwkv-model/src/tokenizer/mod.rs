//! Text to token ids and back.
//!
//! A [`Tokenizer`] is a vocabulary of byte strings; it encodes by taking the longest token that matches, again and
//! again (the algorithm of the RWKV World models), or as a `tokenizer.json` of Hugging Face says (the Pile models).
//! Around it, for text that arrives token by token: [`TextDecoder`] turns token bytes into printable text,
//! [`StopStrings`] ends it where the caller asked.
//!
//! ```
//! use rwkv_model::tokenizer::Tokenizer;
//!
//! let world = Tokenizer::world()?;
//! let ids = world.encode("Hello world".as_bytes())?;
//! assert_eq!(ids, [33155, 40213]);
//! assert_eq!(world.decode(&ids), b"Hello world");
//! # Ok::<(), rwkv_model::tokenizer::TokenizerError>(())
//! ```

mod byte_level;
mod error;
mod gguf_tokens;
mod hugging_face;
mod json_file;
mod python_literal;
mod stop_strings;
mod text_decoder;
mod token_list;
mod trie;
mod vocab_file;
mod world;
#[cfg(test)]
mod world_cases;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub use error::{LiteralError, TokenProblem, TokenizerError};
use hugging_face::HuggingFace;
pub use stop_strings::{StopOutput, StopStrings};
pub use text_decoder::TextDecoder;
use token_list::{Token, TokenList};
use trie::Trie;

/// Tokens made of these characters alone, in this order, add nothing to their own repetition count
/// (`PIPELINE.generate` of the reference package).
const UNCOUNTED: &[u8] = b" \t0123456789";

/// The largest file that is read, in MiB: a World vocabulary has 1, GPT-NeoX's `tokenizer.json` 2.
const MAX_FILE_MIB: u64 = 32;

/// A vocabulary of byte strings with ids, and how a text is cut into them.
#[derive(Clone)]
pub struct Tokenizer {
    name: String,
    encoder: Encoder,
    /// The bytes of all tokens.
    pool: Vec<u8>,
    /// By id: where in `pool` the token's bytes begin and end; an empty span for an id that has none.
    spans: Vec<(u32, u32)>,
    end_of_text: Option<u32>,
}

/// How a text becomes ids.
#[derive(Clone)]
enum Encoder {
    /// Always the longest token that matches.
    LongestMatch(Trie),
    /// As a `tokenizer.json` says.
    HuggingFace(Arc<HuggingFace>),
}

impl Tokenizer {
    /// The World vocabulary of 2023-04-24, ids 1 to 65,529, that all World and G1 models use. It is part of the
    /// program: no file is needed.
    ///
    /// The error is for a damaged build only.
    pub fn world() -> Result<Self, TokenizerError> {
        Ok(Self::assemble("world", world::unpack()?, 0, Some(0)))
    }

    /// One token a byte: the id is the byte's value.
    pub fn bytes() -> Self {
        let pool: Vec<u8> = (0..=u8::MAX).collect();
        let tokens = (0..=255)
            .map(|id| Token {
                id,
                start: id,
                end: id + 1,
            })
            .collect();
        Self::assemble("bytes", TokenList { pool, tokens }, 256, None)
    }

    /// Reads a vocabulary file, or a `tokenizer.json`: the content tells which, not the name. The tokenizer takes the
    /// file's name. See [`from_vocab_text`](Self::from_vocab_text) and [`from_json`](Self::from_json).
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let failed = |reason| TokenizerError::Read {
            path: path.to_path_buf(),
            reason,
        };
        let limit = MAX_FILE_MIB << 20;
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(limit + 1).read_to_end(&mut text))
            .map_err(failed)?;
        if text.len() as u64 > limit {
            return Err(TokenizerError::TooLarge {
                path: path.to_path_buf(),
                limit: MAX_FILE_MIB,
            });
        }
        let name = path.file_name().unwrap_or(path.as_os_str());
        let name = name.to_string_lossy();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        // A line of a vocabulary file begins with a number.
        if text.trim_ascii_start().starts_with(b"{") {
            Self::from_json(&name, text)
        } else {
            Self::from_vocab_text(&name, text)
        }
    }

    /// Takes the text of a `tokenizer.json` of Hugging Face's `tokenizers` (version 1.0; models `BPE` and `WordLevel`).
    /// `name` is the tokenizer's name, and stands in errors.
    ///
    /// Added tokens, special ones too, are found in texts as that library finds them; nothing is put before or after
    /// a text, whatever the file says. The end of a text is a token called `<|endoftext|>`, `</s>` or similar, else
    /// id 0 where that is a special token.
    pub fn from_json(name: &str, text: &[u8]) -> Result<Self, TokenizerError> {
        if text.len() as u64 > MAX_FILE_MIB << 20 {
            return Err(TokenizerError::TooLarge {
                path: name.into(),
                limit: MAX_FILE_MIB,
            });
        }
        let hugging_face::Loaded {
            encoder,
            tokens,
            end_of_text,
        } = hugging_face::load(name, text)?;
        let mut pool = Vec::new();
        let mut spans = Vec::with_capacity(tokens.len());
        for token in tokens {
            let start = pool.len();
            pool.extend(token);
            #[allow(
                clippy::cast_possible_truncation,
                reason = "`load` bounds all tokens by four times the text, which is below 4 GiB"
            )]
            spans.push((start as u32, pool.len() as u32));
        }
        Ok(Self {
            name: name.to_owned(),
            encoder: Encoder::HuggingFace(Arc::new(encoder)),
            pool,
            spans,
            end_of_text,
        })
    }

    /// Parses a vocabulary in the World syntax: `ID literal LENGTH` a line, where `literal` is a Python `str` or
    /// `bytes` literal and `LENGTH` its bytes (of its UTF-8 form). `name` is the tokenizer's name, and stands in
    /// errors.
    ///
    /// Ids may have gaps and any order. Id 0 is the end of a text and must not stand in the file.
    pub fn from_vocab_text(name: &str, text: &[u8]) -> Result<Self, TokenizerError> {
        Ok(Self::assemble(
            name,
            vocab_file::parse(name, text)?,
            0,
            Some(0),
        ))
    }

    /// Takes the token list of a GGUF file whose `tokenizer.ggml.model` is `rwkv`: `tokens` is
    /// `tokenizer.ggml.tokens` (bytes escaped as Python's `repr` writes them; the id is the place in the list) and
    /// `types` is `tokenizer.ggml.token_type`, one a token.
    ///
    /// Types 1 (normal), 4 (user defined) and 6 (byte) are text; 0, 2, 3 and 5 (undefined, unknown, control, unused)
    /// are ids without bytes. A token 0 that is no text ends a text.
    pub fn from_gguf_tokens<'a>(
        tokens: impl IntoIterator<Item = &'a [u8]>,
        types: &[i64],
    ) -> Result<Self, TokenizerError> {
        let list = gguf_tokens::parse(tokens, types)?;
        let zero_is_text = list.tokens.iter().any(|token| token.id == 0);
        Ok(Self::assemble(
            "gguf",
            list,
            types.len(),
            (!zero_is_text).then_some(0),
        ))
    }

    /// Whether a text's ids are always the longest tokens that match, as the World vocabulary is used and as GGUF's
    /// `rwkv` vocabulary means; `false` for a `tokenizer.json`.
    pub fn is_longest_match(&self) -> bool {
        matches!(self.encoder, Encoder::LongestMatch(_))
    }

    /// `list` is sorted by bytes and without repetitions; ids up to `least_size` exist even without bytes.
    fn assemble(name: &str, list: TokenList, least_size: usize, end_of_text: Option<u32>) -> Self {
        let size = list
            .tokens
            .iter()
            .map(|token| token.id as usize + 1)
            .fold(least_size, usize::max);
        let mut spans = vec![(0, 0); size];
        for token in &list.tokens {
            if let Some(span) = spans.get_mut(token.id as usize) {
                *span = (token.start, token.end);
            }
        }
        let trie = Trie::new(&list);
        Self {
            name: name.to_owned(),
            encoder: Encoder::LongestMatch(trie),
            pool: list.pool,
            spans,
            end_of_text,
        }
    }

    /// The ids of `text`: the longest token that matches, again and again; or what a `tokenizer.json` says.
    ///
    /// Fails where no token matches, which cannot happen in a vocabulary that has every single byte (World, bytes);
    /// with a `tokenizer.json`, for a text that is not UTF-8.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>, TokenizerError> {
        let trie = match &self.encoder {
            Encoder::LongestMatch(trie) => trie,
            Encoder::HuggingFace(encoder) => return encoder.encode(&self.name, text),
        };
        // English has about 4.5 bytes a World token.
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        let mut rest = text;
        while let Some(&byte) = rest.first() {
            let Some((id, length)) = trie.longest_match(rest) else {
                let at = text.len() - rest.len();
                return Err(TokenizerError::NoMatch {
                    name: self.name.clone(),
                    at,
                    byte,
                });
            };
            ids.push(id);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(ids)
    }

    /// The bytes of a token, never empty. `None` for an id outside the vocabulary and for one without text (the end
    /// of a text, control tokens, unused ids). The added tokens of a `tokenizer.json` have their text, special or not.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        let &(start, end) = self.spans.get(id as usize)?;
        self.pool
            .get(start as usize..end as usize)
            .filter(|bytes| !bytes.is_empty())
    }

    /// The bytes of a text; ids without bytes add nothing. They need not be UTF-8: tokens end inside characters.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter()
            .filter_map(|&id| self.token(id))
            .flatten()
            .copied()
            .collect()
    }

    /// One more than the highest id (World: 65,530). A model may have more rows: no text leads to those.
    pub fn vocab_size(&self) -> usize {
        self.spans.len()
    }

    /// Where the vocabulary is from: `world`, `bytes`, `gguf` or the name of a file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that stands between documents in training, with which a model ends its text.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Whether sampling `id` leaves its repetition count as it is: its text is a piece of `" \t0123456789"`, so
    /// spaces and digits may repeat freely.
    pub fn is_uncounted(&self, id: u32) -> bool {
        self.token(id)
            .is_some_and(|bytes| UNCOUNTED.windows(bytes.len()).any(|piece| piece == bytes))
    }

    /// All ids that [`is_uncounted`](Self::is_uncounted), in rising order: what a sampler needs once a model.
    pub fn uncounted(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .take(self.vocab_size())
            .filter(|&id| self.is_uncounted(id))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.name)
            .field("vocab_size", &self.vocab_size())
            .field("end_of_text", &self.end_of_text)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod json_tests;
#[cfg(test)]
mod tests;
