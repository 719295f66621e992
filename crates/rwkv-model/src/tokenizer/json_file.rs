//! A `tokenizer.json`, checked before the crate `tokenizers` sees it: that crate trusts its files, and this program
//! does not.
//!
//! Format: the serialization of `tokenizers::Tokenizer`, version 1.0. Its parts are known by name here, and whatever
//! no RWKV model's file uses is refused, above all what that crate panics on (a `Replace` whose pattern matches nothing,
//! say). What pads, truncates, frames or randomizes a text is left out.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::token_list::{MAX_ID, MAX_TOKEN_BYTES};

/// Parts of one pipeline, counting those inside sequences.
const MAX_PARTS: usize = 16;

/// How many times longer replacements may make a text, all together.
const MAX_GROWTH: usize = 256;

/// Bytes of a pattern or of a replacement; GPT-4's pattern has 150.
const MAX_PATTERN_BYTES: usize = 2048;

/// What counted repetitions of a pattern may multiply to: they are unrolled.
const MAX_REPETITIONS: u64 = 4096;

/// One of the three pipelines of parts.
struct Pipeline {
    /// Its key.
    key: &'static str,
    /// What a sequence calls its parts.
    list: &'static str,
    /// The parts it may have.
    parts: &'static [&'static str],
}

const PIPELINES: [Pipeline; 3] = [
    Pipeline {
        key: "normalizer",
        list: "normalizers",
        parts: &[
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Lowercase",
            "StripAccents",
            "Prepend",
            "Replace",
            "ByteLevel",
        ],
    },
    Pipeline {
        key: "pre_tokenizer",
        list: "pretokenizers",
        parts: &[
            "ByteLevel",
            "Split",
            "Digits",
            "Whitespace",
            "WhitespaceSplit",
            "Punctuation",
            "Metaspace",
            "BertPreTokenizer",
        ],
    },
    Pipeline {
        key: "decoder",
        list: "decoders",
        parts: &[
            "ByteLevel",
            "Metaspace",
            "ByteFallback",
            "Fuse",
            "Strip",
            "Replace",
            "BPEDecoder",
            "WordPiece",
        ],
    },
];

/// A token that is matched before the model sees the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub id: u32,
    pub content: String,
    pub special: bool,
}

/// A file that is safe to load.
#[derive(Debug)]
pub(super) struct Checked {
    /// The file, for the crate `tokenizers`.
    pub json: Value,
    /// The model's tokens by id.
    pub vocab: Vec<(u32, String)>,
    /// Added tokens, in the file's order; their ids may be those of the model's tokens with the same text.
    pub added: Vec<AddedToken>,
    /// Whether tokens are written in byte-level characters.
    pub byte_level: bool,
    /// Whether tokens such as `<0x0A>` are bytes.
    pub byte_fallback: bool,
}

/// Reads and checks; the error says what is wrong.
pub(super) fn check(text: &[u8]) -> Result<Checked, String> {
    let mut json: Value = serde_json::from_slice(text).map_err(|e| format!("not JSON: {e}"))?;
    let root = json.as_object_mut().ok_or("no JSON object")?;
    for key in ["truncation", "padding", "post_processor"] {
        root.remove(key);
    }
    let mut found = Vec::new();
    for pipeline in &PIPELINES {
        let mut walk = Walk {
            pipeline,
            parts: 0,
            growth: 1,
            found: &mut found,
        };
        match root.get(pipeline.key) {
            None | Some(Value::Null) => {}
            Some(part) => walk.part(part)?,
        }
    }
    let model = root
        .get_mut("model")
        .and_then(Value::as_object_mut)
        .ok_or("it has no `model`")?;
    let vocab = check_model(model)?;
    let added = added_tokens(root)?;
    Ok(Checked {
        byte_level: found.contains(&"ByteLevel"),
        byte_fallback: found.contains(&"ByteFallback"),
        json,
        vocab,
        added,
    })
}

/// A pipeline on its way through its parts.
struct Walk<'a> {
    pipeline: &'static Pipeline,
    parts: usize,
    growth: usize,
    found: &'a mut Vec<&'static str>,
}

impl Walk<'_> {
    fn part(&mut self, part: &Value) -> Result<(), String> {
        let Pipeline { key, list, parts } = *self.pipeline;
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(format!("`{key}` has more than {MAX_PARTS} parts"));
        }
        let kind = text_of(part, "type").ok_or_else(|| format!("a `{key}` without a type"))?;
        if kind == "Sequence" {
            let inner = part.get(list).and_then(Value::as_array);
            let inner = inner.ok_or_else(|| format!("a sequence in `{key}` without `{list}`"))?;
            return inner.iter().try_for_each(|part| self.part(part));
        }
        let known = parts.iter().find(|known| **known == kind);
        let known = known.ok_or_else(|| {
            let kind = shortened(kind);
            format!("`{key}` has a part of type {kind}, which is not supported")
        })?;
        self.found.push(known);
        let pattern = pattern(part)?;
        match *known {
            "Replace" => {
                let content = text_of(part, "content").unwrap_or_default().len();
                if content > MAX_PATTERN_BYTES {
                    return Err("a replacement that is too long".to_owned());
                }
                match pattern {
                    Some(Pattern::Literal(bytes @ 1..)) => self.grow(content.div_ceil(bytes)),
                    _ => Err("a `Replace` of no plain text, which is not supported".to_owned()),
                }
            }
            "Prepend" => match text_of(part, "prepend") {
                None | Some("") => Err("a `Prepend` of nothing".to_owned()),
                Some(text) => self.grow(1 + text.len()),
            },
            "Strip" if part.get("stop").is_some_and(|stop| *stop != 0) => {
                Err("a `Strip` that cuts ends, which is not supported".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn grow(&mut self, factor: usize) -> Result<(), String> {
        self.growth = self.growth.saturating_mul(factor.max(1));
        if self.growth > MAX_GROWTH {
            return Err("replacements that make a text far longer".to_owned());
        }
        Ok(())
    }
}

enum Pattern {
    /// Of so many bytes.
    Literal(usize),
    Regex,
}

/// The pattern of a part that has one.
fn pattern(part: &Value) -> Result<Option<Pattern>, String> {
    let Some(pattern) = part.get("pattern") else {
        return Ok(None);
    };
    if let Some(literal) = text_of(pattern, "String") {
        return Ok(Some(Pattern::Literal(literal.len())));
    }
    let regex = text_of(pattern, "Regex").ok_or("a pattern that is neither text nor regex")?;
    if regex.len() > MAX_PATTERN_BYTES || repetitions(regex) > MAX_REPETITIONS {
        return Err("a regular expression that is too large".to_owned());
    }
    Ok(Some(Pattern::Regex))
}

/// The product of all numbers in `{n}`, `{n,}` and `{n,m}`.
fn repetitions(regex: &str) -> u64 {
    let counts = regex.split('{').skip(1).filter_map(|rest| {
        let (inside, _) = rest.split_once('}')?;
        let numbers: Option<Vec<u64>> = inside
            .split(',')
            .map(str::trim)
            .filter(|number| !number.is_empty())
            .map(|number| {
                let digits = number.bytes().all(|byte| byte.is_ascii_digit());
                digits.then(|| number.parse().unwrap_or(u64::MAX))
            })
            .collect();
        numbers?.into_iter().max()
    });
    counts.fold(1, |product: u64, n| product.saturating_mul(n.max(1)))
}

/// Checks the model and returns its tokens, sorted by id.
fn check_model(model: &mut Map<String, Value>) -> Result<Vec<(u32, String)>, String> {
    let kind = match model.get("type") {
        // Old files do not say it.
        None if model.contains_key("merges") => "BPE".to_owned(),
        kind => kind
            .and_then(Value::as_str)
            .ok_or("its `model` has no type")?
            .to_owned(),
    };
    if !["BPE", "WordLevel"].contains(&kind.as_str()) {
        return Err(format!(
            "its `model` is of type {}, and only BPE and WordLevel are supported",
            shortened(&kind)
        ));
    }
    model.insert("type".to_owned(), kind.into());
    // Encoding at random is for training.
    model.remove("dropout");
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        match model.remove(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(_) => {
                return Err(format!("its `model` has a `{key}`, which is not supported"));
            }
        }
    }
    let vocab = model.get("vocab").and_then(Value::as_object);
    let vocab = vocab.ok_or("its `model` has no `vocab`")?;
    let mut tokens = Vec::with_capacity(vocab.len());
    for (token, id) in vocab {
        tokens.push((checked_id(token, Some(id))?, token.clone()));
    }
    if tokens.is_empty() {
        return Err("its `vocab` is empty".to_owned());
    }
    tokens.sort_unstable();
    for pair in tokens.windows(2) {
        if let [(id, one), (again, other)] = pair
            && id == again
        {
            let (one, other) = (shortened(one), shortened(other));
            return Err(format!("tokens {one} and {other} both have id {id}"));
        }
    }
    let known = |token: &str| vocab.contains_key(token);
    for merge in model
        .get("merges")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (left, right) = merge_pair(merge).ok_or_else(|| {
            format!(
                "{} is no merge of two tokens",
                shortened(&merge.to_string())
            )
        })?;
        if !(known(left) && known(right) && known(&format!("{left}{right}"))) {
            let (left, right) = (shortened(left), shortened(right));
            return Err(format!("the merge of {left} and {right} is no token"));
        }
    }
    Ok(tokens)
}

/// `"left right"`, or `["left", "right"]`.
fn merge_pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(pair) => pair
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' ')),
        Value::Array(pair) => match pair.as_slice() {
            [left, right] => left.as_str().zip(right.as_str()),
            _ => None,
        },
        _ => None,
    }
}

fn added_tokens(root: &Map<String, Value>) -> Result<Vec<AddedToken>, String> {
    let list = match root.get("added_tokens") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(list) => list.as_array().ok_or("`added_tokens` is no list")?,
    };
    let mut added: Vec<AddedToken> = Vec::with_capacity(list.len());
    let mut ids: HashMap<u32, usize> = HashMap::new();
    check_stripping(root, list)?;
    for (place, token) in list.iter().enumerate() {
        let content = text_of(token, "content").ok_or("an added token without `content`")?;
        let id = checked_id(content, token.get("id"))?;
        if let Some(other) = ids.insert(id, place).and_then(|place| added.get(place)) {
            let (one, other) = (shortened(&other.content), shortened(content));
            return Err(format!("added tokens {one} and {other} both have id {id}"));
        }
        added.push(AddedToken {
            id,
            content: content.to_owned(),
            special: token.get("special") == Some(&Value::Bool(true)),
        });
    }
    Ok(added)
}

/// An added token that takes the space after it, beside one that begins with space: the crate looks for the second
/// inside of what the first took, and panics.
fn check_stripping(root: &Map<String, Value>, added: &[Value]) -> Result<(), String> {
    let normalizes = root.get("normalizer").is_some_and(|n| !n.is_null());
    let has = |token: &Value, flag: &str| token.get(flag) == Some(&Value::Bool(true));
    // Tokens are looked for in the text as it is and, the others, in the normalized text.
    for normalized in [false, true] {
        let mut tokens = added
            .iter()
            .filter(|token| has(token, "normalized") == normalized);
        let spaced = |token: &Value| {
            let content = text_of(token, "content").unwrap_or_default();
            (normalized && normalizes) || content.starts_with(char::is_whitespace)
        };
        if tokens.clone().any(|token| has(token, "rstrip"))
            && let Some(token) = tokens.find(|token| spaced(token))
        {
            let content = shortened(text_of(token, "content").unwrap_or_default());
            return Err(format!(
                "added token {content} may begin with space that another one takes (`rstrip`), which is not supported"
            ));
        }
    }
    Ok(())
}

fn checked_id(token: &str, id: Option<&Value>) -> Result<u32, String> {
    if token.len() > 2 * MAX_TOKEN_BYTES {
        return Err(format!(
            "token {} is longer than {MAX_TOKEN_BYTES} bytes",
            shortened(token)
        ));
    }
    id.and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok())
        .filter(|id| *id <= MAX_ID)
        .ok_or_else(|| {
            let token = shortened(token);
            format!("the id of token {token} is not a number from 0 to {MAX_ID}")
        })
}

fn text_of<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

/// A text from the file, for a message: quoted, on one line, not long.
pub(super) fn shortened(text: &str) -> String {
    let mut cut: String = text.chars().take(40).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}
