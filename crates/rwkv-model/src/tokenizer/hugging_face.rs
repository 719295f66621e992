//! `tokenizer.json` of Hugging Face's `tokenizers`: the Pile models of RWKV-4 use GPT-NeoX 20B's (byte-level BPE).
//!
//! The crate `tokenizers` encodes. Decoding is ours, from a table: a token's bytes must not depend on what came
//! before it, and may end inside a character.

use std::collections::HashSet;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use tokenizers::Decoder as _;

use super::byte_level;
use super::error::TokenizerError;
use super::json_file::{self, AddedToken, Checked, shortened};
use super::token_list::MAX_TOKEN_BYTES;

/// Tokens that end a text, the surest first.
const ENDS: [&str; 6] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<s>",
];

/// What a token is decoded after, so that no decoder takes it for the beginning of a text, whose space is dropped.
const BEFORE: &str = "a";

/// How many times the file's length its decoded tokens may have: each stands in it.
const MAX_GROWTH: usize = 4;

/// Encodes as `tokenizer.json` says.
pub(super) struct HuggingFace {
    inner: tokenizers::Tokenizer,
    /// Of a byte-level vocabulary, the bytes that no token of its own stands for: BPE drops them silently.
    missing: Vec<u8>,
}

/// A loaded file: the encoder, and the bytes of each id.
pub(super) struct Loaded {
    pub encoder: HuggingFace,
    /// By id; empty for an id without text.
    pub tokens: Vec<Vec<u8>>,
    pub end_of_text: Option<u32>,
}

/// Reads the text of a `tokenizer.json`; `name` stands in errors.
pub(super) fn load(name: &str, text: &[u8]) -> Result<Loaded, TokenizerError> {
    let bad = |problem: String| TokenizerError::Json {
        file: name.to_owned(),
        problem,
    };
    let Checked {
        json,
        vocab,
        added,
        byte_level,
        byte_fallback,
    } = json_file::check(text).map_err(bad)?;
    let inner: tokenizers::Tokenizer = caught(|| serde_json::from_value(json)).map_err(bad)?;
    for token in added.iter().filter(|token| !token.content.is_empty()) {
        // The crate numbers added tokens itself, on from the model's.
        let id = inner.token_to_id(&token.content);
        if id != Some(token.id) {
            let (content, want) = (shortened(&token.content), token.id);
            return Err(bad(format!(
                "the id {want} of the added token {content} is not the next one after the model's"
            )));
        }
    }

    let ids = vocab.iter().map(|(id, _)| *id);
    let size = ids.chain(added.iter().map(|token| token.id)).max();
    let mut tokens = vec![Vec::new(); size.map_or(0, |id| id as usize + 1)];
    let mut bytes_left = text.len().saturating_mul(MAX_GROWTH);
    let texts = Texts {
        byte_level,
        byte_fallback,
        decoder: inner.get_decoder(),
    };
    for (id, token) in &vocab {
        let bytes = texts.bytes(token).map_err(bad)?;
        bytes_left = bytes_left
            .checked_sub(bytes.len())
            .ok_or_else(|| bad("its tokens are far longer than the file".to_owned()))?;
        if bytes.len() > MAX_TOKEN_BYTES {
            let token = shortened(token);
            return Err(bad(format!(
                "token {token} is longer than {MAX_TOKEN_BYTES} bytes"
            )));
        }
        if let Some(place) = tokens.get_mut(*id as usize) {
            *place = bytes;
        }
    }
    for token in &added {
        if let Some(place) = tokens.get_mut(token.id as usize) {
            *place = token.content.clone().into_bytes();
        }
    }

    let missing = if byte_level {
        let single: HashSet<&str> = vocab.iter().map(|(_, token)| token.as_str()).collect();
        let stands = |byte: &u8| single.contains(byte_level::character(*byte).to_string().as_str());
        (0..=u8::MAX).filter(|byte| !stands(byte)).collect()
    } else {
        Vec::new()
    };
    Ok(Loaded {
        end_of_text: end_of_text(&added, &vocab, tokens.first()),
        encoder: HuggingFace { inner, missing },
        tokens,
    })
}

impl HuggingFace {
    /// The ids of `text`; `name` stands in errors.
    pub(super) fn encode(&self, name: &str, text: &[u8]) -> Result<Vec<u32>, TokenizerError> {
        let text = std::str::from_utf8(text).map_err(|error| {
            let at = error.valid_up_to();
            TokenizerError::NotUtf8 {
                name: name.to_owned(),
                at,
                byte: text.get(at).copied().unwrap_or_default(),
            }
        })?;
        if !self.missing.is_empty()
            && let Some((at, byte)) = (0..)
                .zip(text.bytes())
                .find(|(_, byte)| self.missing.contains(byte))
        {
            return Err(TokenizerError::NoMatch {
                name: name.to_owned(),
                at,
                byte,
            });
        }
        let encoding = caught(|| self.inner.encode_fast(text, false)).map_err(|problem| {
            TokenizerError::Encode {
                name: name.to_owned(),
                problem,
            }
        })?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl fmt::Debug for HuggingFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HuggingFace").finish_non_exhaustive()
    }
}

/// How the model's tokens become bytes.
struct Texts<'a> {
    byte_level: bool,
    byte_fallback: bool,
    decoder: Option<&'a tokenizers::DecoderWrapper>,
}

impl Texts<'_> {
    fn bytes(&self, token: &str) -> Result<Vec<u8>, String> {
        if self.byte_level {
            return Ok(byte_level::bytes(token));
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return Ok(vec![byte]);
        }
        let Some(decoder) = self.decoder else {
            // Without a decoder, tokens are words.
            return Ok(format!(" {token}").into_bytes());
        };
        let decode = |tokens: &[&str]| {
            let tokens = tokens.iter().map(|&token| token.to_owned()).collect();
            let decoded = decoder.decode_chain(tokens);
            decoded.map(|parts| parts.concat()).map_err(|error| {
                let (token, error) = (shortened(token), one_line(&error.to_string()));
                format!("token {token} cannot be decoded: {error}")
            })
        };
        let after = decode(&[BEFORE, token])?;
        match after.strip_prefix(&decode(&[BEFORE])?) {
            Some(text) => Ok(text.as_bytes().to_vec()),
            None => decode(&[token]).map(String::into_bytes),
        }
    }
}

/// `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// A token of [`ENDS`], else id 0 where that is a special token or has no text.
fn end_of_text(
    added: &[AddedToken],
    vocab: &[(u32, String)],
    zero: Option<&Vec<u8>>,
) -> Option<u32> {
    let known = |text: &str| {
        let added = added.iter().find(|token| token.content == text);
        let in_model = || vocab.iter().find(|(_, token)| token == text);
        added
            .map(|token| token.id)
            .or_else(|| in_model().map(|(id, _)| *id))
    };
    ENDS.into_iter().find_map(known).or_else(|| {
        let special = added.iter().any(|token| token.id == 0 && token.special);
        (special || zero.is_none_or(Vec::is_empty)).then_some(0)
    })
}

/// What [`caught`] says of a panic.
pub(super) const PANICKED: &str = "its library failed in a way that it should not";

/// Runs code of the crate `tokenizers`, which panics where it thinks a file or a text cannot be so. The check of the
/// file leaves no such case that we know; one that we do not know must not end the program.
fn caught<T, E: fmt::Display>(code: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    // Nothing is changed that could be left half changed: the tokenizer is read only.
    match panic::catch_unwind(AssertUnwindSafe(code)) {
        Ok(result) => result.map_err(|error| one_line(&error.to_string())),
        Err(_) => Err(PANICKED.to_owned()),
    }
}

/// A message of another crate, which may repeat much of the file, as one line that is not long.
fn one_line(message: &str) -> String {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut cut: String = words.chars().take(200).collect();
    if cut.len() < words.len() {
        cut.push('…');
    }
    cut
}
