//! PyTorch checkpoints (`.pth`, `.pt`, `.bin`): a zip archive with a pickled dictionary of tensors, and their bytes.
//!
//! Source: `torch/serialization.py` and `torch/_utils.py` of PyTorch 1.6 and later. The archive has one folder of any
//! name, in it `data.pkl`, for each storage a stored entry `data/KEY`, and since 2.0 a `byteorder`. The pickle runs
//! nothing: see [`pickle`] and [`globals`].

mod archive;
mod globals;
mod heap;
mod layout;
mod pickle;

use std::collections::{BTreeMap, btree_map};

use super::error::{Fault, quoted};
use super::metadata::Entry as Text;
use super::{Contents, Tensor};
use archive::{Archive, Entry};
use heap::{Heap, Id, Value};
use layout::{Layout, Storages};

const PICKLE: &[u8] = b"data.pkl";
/// What TorchScript archives have beside the pickle.
const SCRIPT: &[u8] = b"constants.pkl";
/// Where trainers put the dictionary of tensors among other things.
const NESTED: &str = "state_dict";
/// What some trainers put before every name.
const PREFIX: &str = "_forward_module.";
/// In checkpoints that another program has prepared for itself.
const PREPARED: &str = "_strategy";

/// The longest name of a tensor, in bytes.
const LONGEST_NAME: usize = 65_535;
/// What is kept of entries that are no tensors: short texts and numbers, and not too many. A pickle can mention one
/// long text again and again.
const LONGEST_TEXT: usize = 4096;
const MOST_TEXTS: usize = 1024;
/// The most bytes of tensors that are copied because their elements are not in order. Checkpoints have none of them,
/// or small ones: more should be put in order once, by who saves them.
const MOST_COPIED: usize = 1 << 30;

pub(super) fn read(bytes: &[u8]) -> Result<Contents, Fault> {
    let archive = Archive::open(bytes)?;
    let (root, name, entry) = find_pickle(&archive)?;
    let inside = |name: &[u8]| [root, name].concat();
    if archive.get(&inside(SCRIPT)).is_some() {
        return Err(Fault::Unsupported(
            "this is a TorchScript program, not a checkpoint; save the model's state_dict instead"
                .to_owned(),
        ));
    }
    byte_order(&archive, &inside(b"byteorder"))?;
    let (heap, top) = pickle::run(archive.content(name, entry)?)?;
    let (pairs, texts) = dictionary(&heap, top)?;
    let storages = Storages::new(&archive, &inside(b"data/"));

    let mut contents = Contents {
        tensors: BTreeMap::new(),
        metadata: BTreeMap::new(),
        copies: Vec::new(),
    };
    for &(key, value) in texts.into_iter().flatten().chain(pairs) {
        note(&heap, key, value, &mut contents.metadata);
    }
    for &(key, value) in pairs {
        let Value::Tensor { args, typed } = *heap.get(value) else {
            continue;
        };
        let Some(name) = heap.text(key) else {
            return Err(Fault::Unsupported(
                "a tensor of the dictionary has no name, but a number or a tuple; save a dictionary with names".to_owned(),
            ));
        };
        if name.len() > LONGEST_NAME {
            return Err(Fault::Damaged(format!(
                "the name of a tensor has {} bytes",
                name.len()
            )));
        }
        let name = plain_name(name);
        let layout = Layout::read(&heap, &storages, name, args, typed)?;
        let tensor = place(name, layout, bytes, &mut contents.copies)?;
        match contents.tensors.entry(name.to_owned()) {
            btree_map::Entry::Occupied(twice) => {
                return Err(Fault::Damaged(format!(
                    "tensor {} is there twice",
                    quoted(twice.key())
                )));
            }
            btree_map::Entry::Vacant(free) => free.insert(tensor),
        };
    }
    Ok(contents)
}

/// A tensor's name without what trainers put before it.
pub(super) fn plain_name(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The folder of the pickle with its slash, the pickle's whole name, and the pickle.
fn find_pickle<'a>(archive: &Archive<'a>) -> Result<(&'a [u8], &'a [u8], Entry), Fault> {
    let mut found = archive.entries().filter_map(|(name, entry)| {
        let root = name.strip_suffix(PICKLE)?;
        (root.is_empty() || root.ends_with(b"/")).then_some((root, name, entry))
    });
    match (found.next(), found.next()) {
        (Some(pickle), None) => Ok(pickle),
        (None, _) => Err(Fault::Unrecognised {
            found: "a zip archive without data.pkl",
            advice: "unpack it, if the checkpoint is inside",
        }),
        (Some(_), Some(_)) => Err(Fault::Damaged(
            "the zip archive has more than one data.pkl".to_owned(),
        )),
    }
}

fn byte_order(archive: &Archive<'_>, name: &[u8]) -> Result<(), Fault> {
    let Some(entry) = archive.get(name) else {
        return Ok(());
    };
    match archive.content(name, entry)?.trim_ascii() {
        b"little" => Ok(()),
        b"big" => Err(Fault::Unsupported(
            "the tensors are big-endian; save the checkpoint again on a little-endian computer"
                .to_owned(),
        )),
        _ => Err(Fault::Damaged(
            "the byte order is neither little nor big".to_owned(),
        )),
    }
}

/// Pairs of a dictionary.
type Pairs<'h> = &'h [(Id, Id)];

/// The dictionary of tensors; and where it lies inside of another one, that one.
fn dictionary<'h>(heap: &'h Heap<'_>, top: Id) -> Result<(Pairs<'h>, Option<Pairs<'h>>), Fault> {
    let unsupported = |what: &str| Err(Fault::Unsupported(what.to_owned()));
    let pairs_of = |id| match heap.get(id) {
        Value::Dict(pairs) => Some(pairs.as_slice()),
        _ => None,
    };
    let Some(outer) = pairs_of(top) else {
        return unsupported(
            "the pickle holds no dictionary of tensors; save the model's state_dict",
        );
    };
    let named = |wanted: &str| {
        let mut found = outer
            .iter()
            .filter(|(key, _)| heap.text(*key) == Some(wanted));
        found.next_back().map(|(_, value)| *value)
    };
    let (pairs, around) = match named(NESTED).and_then(pairs_of) {
        Some(inner) => (inner, Some(outer)),
        None => (outer, None),
    };
    let prepared = |pairs: Pairs<'_>| {
        pairs
            .iter()
            .any(|(key, _)| heap.text(*key) == Some(PREPARED))
    };
    if prepared(pairs) || around.is_some_and(prepared) {
        return unsupported(
            "the checkpoint was converted for another program, which transposes its matrices; give the original one",
        );
    }
    let is_tensor = |(_, id): &(Id, Id)| matches!(heap.get(*id), Value::Tensor { .. });
    let is_dict = |(_, id): &(Id, Id)| matches!(heap.get(*id), Value::Dict(_));
    if !pairs.iter().any(is_tensor) && pairs.iter().any(is_dict) {
        return unsupported(
            "the pickle holds dictionaries of dictionaries, none of them called state_dict; save the model's alone",
        );
    }
    Ok((pairs, around))
}

/// Keeps a number, a boolean or a short text as metadata.
fn note(heap: &Heap<'_>, key: Id, value: Id, metadata: &mut BTreeMap<String, Text>) {
    let Some(key) = heap.text(key).filter(|key| key.len() <= LONGEST_TEXT) else {
        return;
    };
    if metadata.len() >= MOST_TEXTS {
        return;
    }
    let text = match heap.get(value) {
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Text(text) if text.len() <= LONGEST_TEXT => (*text).to_owned(),
        _ => return,
    };
    metadata.insert(key.to_owned(), Text::Text(text));
}

/// Finds a tensor its bytes: in the file, or copied in order behind the other `copies`.
fn place(name: &str, layout: Layout, file: &[u8], copies: &mut Vec<u8>) -> Result<Tensor, Fault> {
    let (region, range) = if let Some(range) = layout.contiguous() {
        (0, range)
    } else {
        let end = copies.len().saturating_add(layout.bytes);
        // Storages can be shared, so that what fits each of them may still be too much together.
        if !layout.fits_storage() || end > MOST_COPIED.min(file.len()) {
            return Err(Fault::Unsupported(format!(
                "tensor {} repeats its elements or is one of too many whose elements are not in order; save the \
                 checkpoint again after .contiguous()",
                quoted(name)
            )));
        }
        let start = copies.len();
        layout.gather(file, copies);
        (1, start..end)
    };
    Ok(Tensor {
        kind: layout.kind,
        shape: layout.shape,
        region,
        range,
    })
}
