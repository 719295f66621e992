//! The JSON files of a Hugging Face folder: `config.json`, and the index that tells which tensor is in which shard.
//!
//! Both are parsed here from bytes; [`Checkpoint::open`](super::Checkpoint::open) finds them beside the weights.

use std::collections::BTreeMap;

use serde_json::Value;

use super::FileError;
use super::error::{Fault, quoted};

/// The longest JSON file that we parse, in bytes. Indices have about 100 for each tensor.
const LONGEST: usize = 4 << 20;

/// What metadata that comes from `config.json` is called: this, then its key.
const CONFIG: &str = "config.";

/// The names of tensors in checkpoints that need their `config.json` begin with one of these.
const PREFIXES: [&str; 6] = [
    "model.layers.",
    "model.blocks.",
    "model.embeddings.",
    "model.embed_tokens.",
    "rwkv.blocks.",
    "rwkv.embeddings.",
];

/// Whether a tensor of this name was saved by a Hugging Face model.
pub(super) fn names_it(tensor: &str) -> bool {
    PREFIXES.iter().any(|prefix| tensor.starts_with(prefix))
}

/// Reads a `config.json`, called `file` in messages: its values by `config.KEY`.
///
/// Numbers and booleans are spelt as in JSON, strings are without quotes, arrays and objects are JSON text. A key
/// whose value is `null` is left out.
///
/// # Errors
///
/// [`FileError::Damaged`] for anything that is not one JSON object of at most 4 MiB.
pub fn parse_config(file: &str, json: &[u8]) -> Result<BTreeMap<String, String>, FileError> {
    let config = config(json).map_err(|fault| fault.of(file, json.len() as u64))?;
    Ok(config)
}

fn config(json: &[u8]) -> Result<BTreeMap<String, String>, Fault> {
    let Value::Object(fields) = parse(json)? else {
        return Err(Fault::Damaged("the JSON is no object".to_owned()));
    };
    let pair = |(key, value): (String, Value)| {
        let text = match value {
            Value::Null => return None,
            Value::String(text) => text,
            other => other.to_string(),
        };
        Some((format!("{CONFIG}{key}"), text))
    };
    Ok(fields.into_iter().filter_map(pair).collect())
}

/// Reads a `model.safetensors.index.json` or `pytorch_model.bin.index.json`, called `file` in messages: which file
/// each tensor is in. Every file is a relative path that stays inside the folder, with `/` between its parts.
///
/// # Errors
///
/// [`FileError::Damaged`] for anything that is not JSON of at most 4 MiB with a `weight_map` of such paths.
pub fn parse_index(file: &str, json: &[u8]) -> Result<BTreeMap<String, String>, FileError> {
    index(json).map_err(|fault| fault.of(file, json.len() as u64))
}

fn index(json: &[u8]) -> Result<BTreeMap<String, String>, Fault> {
    let mut top = parse(json)?;
    let map = top.get_mut("weight_map").map(Value::take);
    let Some(Value::Object(map)) = map else {
        return Err(Fault::Damaged(
            "the index has no object called weight_map".to_owned(),
        ));
    };
    let pair = |(tensor, shard): (String, Value)| match shard {
        Value::String(shard) if stays_inside(&shard) => Ok((tensor, shard)),
        other => Err(Fault::Damaged(format!(
            "the index has tensor {} in {}, which is no path inside of the folder",
            quoted(&tensor),
            quoted(&other.to_string())
        ))),
    };
    let shards: BTreeMap<_, _> = map.into_iter().map(pair).collect::<Result<_, _>>()?;
    if shards.is_empty() {
        return Err(Fault::Damaged("the index names no tensors".to_owned()));
    }
    Ok(shards)
}

fn parse(json: &[u8]) -> Result<Value, Fault> {
    if json.len() > LONGEST {
        return Err(Fault::Damaged(format!(
            "the JSON has {} bytes, more than {LONGEST}",
            json.len()
        )));
    }
    serde_json::from_slice(json).map_err(|error| {
        Fault::Damaged(format!("the JSON is wrong: {}", quoted(&error.to_string())))
    })
}

/// Whether a path can only lead to something below the folder that it is joined to, on any system.
fn stays_inside(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let odd = |c: char| c.is_control() || matches!(c, '\\' | ':');
    path.split('/').all(plain) && !path.contains(odd)
}
