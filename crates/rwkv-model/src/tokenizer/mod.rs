//! Text to token ids and back.
//!
//! A [`Tokenizer`] is a vocabulary of byte strings; it encodes by taking the longest token that matches, again and
//! again (the algorithm of the RWKV World models), or by the byte-level BPE of a Hugging Face `tokenizer.json` (RWKV-4's
//! Pile models). Around it, for text that arrives token by token:
//! [`TextDecoder`] turns token bytes into printable text, [`StopStrings`] ends it where the caller asked.
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

mod error;
mod gguf_tokens;
mod hugging_face;
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
use std::path::Path;

pub use error::{LiteralError, TokenProblem, TokenizerError};
use hugging_face::HuggingFace;
pub use stop_strings::{StopOutput, StopStrings};
pub use text_decoder::TextDecoder;
use token_list::{Token, TokenList};
use trie::Trie;

/// Tokens made of these characters alone, in this order, add nothing to their own repetition count
/// (`PIPELINE.generate` of the reference package).
const UNCOUNTED: &[u8] = b" \t0123456789";

/// A vocabulary of byte strings with ids, and how text is cut into them.
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

/// How text is cut into tokens.
#[derive(Clone)]
enum Encoder {
    /// The longest token that matches.
    Longest(Trie),
    /// As a `tokenizer.json` says.
    HuggingFace(HuggingFace),
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

    /// Reads a vocabulary file, in the World syntax or a Hugging Face `tokenizer.json`: see
    /// [`from_bytes`](Self::from_bytes). The tokenizer takes the file's name.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let text = std::fs::read(path).map_err(|reason| TokenizerError::Read {
            path: path.to_path_buf(),
            reason,
        })?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self::from_bytes(&name.to_string_lossy(), &text)
    }

    /// Parses the contents of a vocabulary file: what begins with `{` is a Hugging Face `tokenizer.json` with a
    /// byte-level vocabulary, anything else has the World syntax. `name` is the tokenizer's name, and stands in errors.
    ///
    /// Special tokens of a `tokenizer.json` are ids without bytes.
    pub fn from_bytes(name: &str, text: &[u8]) -> Result<Self, TokenizerError> {
        if !hugging_face::is_json(text) {
            return Self::from_vocab_text(name, text);
        }
        let contents = hugging_face::parse(name, text)?;
        Ok(Self {
            name: name.to_owned(),
            encoder: Encoder::HuggingFace(contents.encoder),
            spans: spans(&contents.tokens, contents.size),
            pool: contents.tokens.pool,
            end_of_text: contents.end_of_text,
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

    /// `list` is sorted by bytes and without repetitions; ids up to `least_size` exist even without bytes.
    fn assemble(name: &str, list: TokenList, least_size: usize, end_of_text: Option<u32>) -> Self {
        Self {
            name: name.to_owned(),
            encoder: Encoder::Longest(Trie::new(&list)),
            spans: spans(&list, least_size),
            pool: list.pool,
            end_of_text,
        }
    }

    /// The ids of `text`.
    ///
    /// Fails where no token matches, which cannot happen in a vocabulary that has every single byte (World, bytes), and
    /// for a text that is not UTF-8 if the vocabulary is Hugging Face's.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>, TokenizerError> {
        let trie = match &self.encoder {
            Encoder::Longest(trie) => trie,
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
    /// of a text, control tokens, unused ids).
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

/// By id, where its token's bytes begin and end in the list's pool; ids up to `least_size` exist even without bytes.
fn spans(list: &TokenList, least_size: usize) -> Vec<(u32, u32)> {
    let ids = list.tokens.iter().map(|token| token.id as usize + 1);
    let mut spans = vec![(0, 0); ids.fold(least_size, usize::max)];
    for token in &list.tokens {
        if let Some(span) = spans.get_mut(token.id as usize) {
            *span = (token.start, token.end);
        }
    }
    spans
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
mod tests;
