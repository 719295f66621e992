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
#[cfg(test)]
pub(super) use heap::looks;
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
/// or small ones: more should be put in order once, by who saves them, than in memory each time.
const MOST_COPIED: usize = 128 << 20;

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
    let mut scattered = Scattered {
        most: MOST_COPIED.min(bytes.len()),
        bytes: 0,
        layouts: Vec::new(),
    };
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
        let tensor = scattered.place(name, layout)?;
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
    contents.copies = scattered.gather(bytes);
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

/// Tensors whose elements are not in order in the file: they are copied, one behind the other.
struct Scattered {
    /// Bytes that may be copied. Storages can be shared, so that what fits each of them may be too much together.
    most: usize,
    /// Bytes of all `layouts`.
    bytes: usize,
    layouts: Vec<Layout>,
}

impl Scattered {
    /// Finds a tensor its bytes: in the file, or in the copy that will be.
    fn place(&mut self, name: &str, layout: Layout) -> Result<Tensor, Fault> {
        let tensor = |layout: &Layout, region, range| Tensor {
            kind: layout.kind,
            shape: layout.shape.clone(),
            region,
            range,
            csr: None,
        };
        if let Some(range) = layout.contiguous() {
            return Ok(tensor(&layout, 0, range));
        }
        if !layout.fits_storage() {
            return Err(Fault::Unsupported(format!(
                "tensor {} repeats its elements; save the checkpoint again after .contiguous()",
                quoted(name)
            )));
        }
        let start = self.bytes;
        let end = start.saturating_add(layout.bytes);
        if end > self.most {
            return Err(Fault::Unsupported(format!(
                "tensor {} is one of too many whose elements are not in order: {end} bytes, of which at most {} are \
                 copied into memory; save the checkpoint again with every tensor .contiguous()",
                quoted(name),
                self.most
            )));
        }
        self.bytes = end;
        let placed = tensor(&layout, 1, start..end);
        self.layouts.push(layout);
        Ok(placed)
    }

    /// The copy, of the bytes of the whole `file`.
    fn gather(self, file: &[u8]) -> Vec<u8> {
        let mut copies = Vec::with_capacity(self.bytes);
        for layout in &self.layouts {
            layout.gather(file, &mut copies);
        }
        copies
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::super::TensorType;
    use super::*;

    /// As many as the limit says are copied, and a byte more is refused with what to do.
    #[test]
    fn copies_are_bounded() {
        let layout = |rows: usize, strides: [usize; 2]| {
            Layout::unchecked(TensorType::Other("u8"), [rows, 2], strides, rows * 2)
        };
        let all = |most: usize, rows: &[usize]| {
            let mut scattered = Scattered {
                most,
                bytes: 0,
                layouts: Vec::new(),
            };
            let ranges: Result<Vec<_>, Fault> = rows
                .iter()
                .map(|&n| Ok(scattered.place("t", layout(n, [1, n]))?.range))
                .collect();
            ranges.map(|ranges| (ranges, scattered.gather(&[1, 2, 3, 4, 5, 6, 7, 8])))
        };
        let (ranges, copies) = all(10, &[3, 2]).ok().unwrap();
        assert_eq!(ranges, [0..6, 6..10]);
        assert_eq!(copies, [1, 4, 2, 5, 3, 6, 1, 3, 2, 4]);
        assert_eq!(copies.capacity(), 10);
        let Err(Fault::Unsupported(text)) = all(9, &[3, 2]) else {
            panic!("nine bytes hold ten");
        };
        assert!(
            text.contains("10 bytes, of which at most 9 are copied"),
            "{text}"
        );
        assert!(
            text.contains(".contiguous()") && !text.contains('\n'),
            "{text}"
        );
        let mut none = Scattered {
            most: 0,
            bytes: 0,
            layouts: Vec::new(),
        };
        let placed = none.place("t", layout(3, [2, 1])).ok().unwrap();
        assert_eq!((placed.region, placed.range), (0, 0..6));
        assert_eq!(none.gather(&[]).capacity(), 0);
    }
}
