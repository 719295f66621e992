//! Where the elements of a tensor are: storage, first element, sizes and strides, checked against the archive.

use std::collections::HashMap;
use std::ops::Range;

use super::super::error::{Fault, quoted};
use super::super::{TensorType, elements};
use super::archive::{Archive, Entry};
use super::globals::Element;
use super::heap::{Heap, Id, Value};

/// The most dimensions of a tensor. Checkpoints have at most 4.
const MOST_DIMS: usize = 8;
/// The longest name of a storage, in bytes. PyTorch numbers them.
const LONGEST_KEY: usize = 64;

/// The storages of an archive, by what their names have after `data/`.
pub(super) struct Storages<'a> {
    archive: &'a Archive<'a>,
    entries: HashMap<&'a [u8], (&'a [u8], Entry)>,
}

impl<'a> Storages<'a> {
    /// Those of the archive whose names begin with `folder`.
    pub(super) fn new(archive: &'a Archive<'a>, folder: &[u8]) -> Self {
        let storage = |(name, entry): (&'a [u8], Entry)| {
            let key = name.strip_prefix(folder)?;
            (key.len() <= LONGEST_KEY).then_some((key, (name, entry)))
        };
        Self {
            archive,
            entries: archive.entries().filter_map(storage).collect(),
        }
    }
}

/// A tensor that lies within its storage.
pub(super) struct Layout {
    pub(super) kind: TensorType,
    /// Outermost first; [`elements`] is not `None`.
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, one number a dimension.
    strides: Vec<usize>,
    /// Bytes of an element.
    element: usize,
    /// All elements, in bytes.
    pub(super) bytes: usize,
    /// Of the first element, in the file.
    start: usize,
    /// Of the storage, in the file.
    storage: Range<usize>,
}

impl Layout {
    /// Reads the arguments of `_rebuild_tensor_v2`, or of `_rebuild_tensor_v3` if `typed`, for the tensor `name`.
    pub(super) fn read(
        heap: &Heap<'_>,
        storages: &Storages<'_>,
        name: &str,
        args: Id,
        typed: bool,
    ) -> Result<Self, Fault> {
        let damaged = |what: &str| Fault::Damaged(format!("tensor {} {what}", quoted(name)));
        let Some(&[storage, first, sizes, strides, ref rest @ ..]) = heap.tuple(args) else {
            return Err(damaged(
                "is not made of a storage, an offset, sizes and strides",
            ));
        };
        let (place, stored, stored_count) = find_storage(heap, storages, storage, &damaged)?;
        // After the first four: needs gradients, hooks, then the type where there is one, then marks of a lazy
        // conjugation or sign.
        let (element, marks) = if typed {
            let element = rest.get(2).and_then(|id| heap.element(*id));
            let element =
                element.ok_or_else(|| damaged("has elements of a type that is not known"))?;
            (element, rest.get(3))
        } else {
            (stored, rest.get(2))
        };
        if marks.is_some_and(|id| matches!(heap.get(*id), Value::Dict(pairs) if !pairs.is_empty()))
        {
            return Err(Fault::Unsupported(format!(
                "tensor {} is conjugated or negated when it is used; save it again after .resolve_conj().resolve_neg()",
                quoted(name)
            )));
        }
        let shape =
            counts(heap, sizes).ok_or_else(|| damaged("has sizes that are not up to 8 numbers"))?;
        let strides = counts(heap, strides)
            .ok_or_else(|| damaged("has strides that are not up to 8 numbers"))?;
        let first = heap
            .count(first)
            .ok_or_else(|| damaged("begins at no number of its storage"))?;
        if shape.len() != strides.len() {
            return Err(damaged("has not one stride for each dimension"));
        }
        if elements(&shape).is_none() {
            return Err(damaged(&format!("is too large: {shape:?}")));
        }
        let count: usize = shape.iter().product();
        let outside = || damaged("lies outside of its storage");
        let bytes = count.checked_mul(element.bytes).ok_or_else(outside)?;
        // What the storage says that it holds, and what the archive has of it.
        let needed = stored_count.checked_mul(stored.bytes);
        let needed = needed.ok_or_else(|| damaged("has a storage that is too large"))?;
        if needed > place.len() {
            return Err(damaged(&format!(
                "has a storage of {needed} bytes, of which the archive has {}",
                place.len()
            )));
        }
        let first_byte = if count == 0 {
            0
        } else {
            let mut steps = shape.iter().zip(&strides);
            let last = steps.try_fold(first, |sum, (size, stride)| {
                sum.checked_add((size - 1).checked_mul(*stride)?)
            });
            let end = last.and_then(|last| last.checked_add(1)?.checked_mul(element.bytes));
            if end.is_none_or(|end| end > needed) {
                return Err(outside());
            }
            first * element.bytes
        };
        Ok(Self {
            kind: element.kind,
            shape,
            strides,
            element: element.bytes,
            bytes,
            start: place.start + first_byte,
            storage: place.start..place.start + needed,
        })
    }

    /// Elements of one byte at the beginning of a file, for tests.
    #[cfg(test)]
    pub(super) fn unchecked(
        kind: TensorType,
        shape: [usize; 2],
        strides: [usize; 2],
        bytes: usize,
    ) -> Self {
        Self {
            kind,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            element: 1,
            bytes,
            start: 0,
            storage: 0..bytes,
        }
    }

    /// The elements in the file, where they are in order and without gaps.
    pub(super) fn contiguous(&self) -> Option<Range<usize>> {
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            // Where there is one index, its stride does not matter.
            if self.bytes > 0 && size > 1 && stride != expected {
                return None;
            }
            expected *= size;
        }
        Some(self.start..self.start + self.bytes)
    }

    /// Whether every element can have a place of its own in the storage. A row that is repeated by a stride of 0 can
    /// make gigabytes of a few bytes.
    pub(super) fn fits_storage(&self) -> bool {
        self.bytes <= self.storage.len()
    }

    /// Appends the elements in order to `copy`, which has room for them, from the whole `file`.
    pub(super) fn gather(&self, file: &[u8], copy: &mut Vec<u8>) {
        let end = copy.len() + self.bytes;
        let mut index = vec![0; self.shape.len()];
        while copy.len() < end {
            // Within the storage, as was checked.
            let offset: usize = index
                .iter()
                .zip(&self.strides)
                .map(|(i, stride)| i * stride)
                .sum();
            let at = self.start + offset * self.element;
            match file.get(at..at + self.element) {
                Some(element) => copy.extend_from_slice(element),
                None => return,
            }
            for (i, &size) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < size {
                    break;
                }
                *i = 0;
            }
        }
    }
}

/// A tuple of numbers.
fn counts(heap: &Heap<'_>, id: Id) -> Option<Vec<usize>> {
    let items = heap.tuple(id).filter(|items| items.len() <= MOST_DIMS)?;
    items.iter().map(|id| heap.count(*id)).collect()
}

/// The place of a storage in the file, the type of its elements, and how many it says there are.
fn find_storage(
    heap: &Heap<'_>,
    storages: &Storages<'_>,
    id: Id,
    damaged: &dyn Fn(&str) -> Fault,
) -> Result<(Range<usize>, Element, usize), Fault> {
    let about = match heap.get(id) {
        Value::Storage(about) => heap.tuple(*about),
        _ => None,
    };
    // The device is where the tensor was; that nobody needs.
    let Some(&[word, class, key, _, count, ..]) = about else {
        return Err(damaged("has no storage"));
    };
    let (Some("storage"), Some(element), Some(key), Some(count)) = (
        heap.text(word),
        heap.element(class),
        heap.text(key),
        heap.count(count),
    ) else {
        return Err(damaged(
            "has a storage that does not say type, name and length",
        ));
    };
    let Some(&(name, entry)) = storages.entries.get(key.as_bytes()) else {
        return Err(damaged(&format!(
            "has the storage {}, which is not in the archive",
            quoted(key)
        )));
    };
    let place = storages.archive.locate(name, entry)?;
    Ok((place, element, count))
}
