//! The values that a pickle makes, each with a number: what refers to a value refers to its number.
//!
//! So a value that is mentioned a thousand times is there once, one that contains itself does no harm, and dropping
//! them all needs no recursion.

use super::super::error::Fault;
use super::globals::{Element, Global};

/// The most values that we keep. Checkpoints have about 25 for each tensor.
const MOST: usize = 1 << 19;

/// The number of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A Python value. Text stays in the file.
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// Something harmless of which no tensor is made.
    Opaque,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// `dict` and `OrderedDict`: keys and values in the order of writing.
    Dict(Vec<(Id, Id)>),
    /// A function or a class of the allow-list.
    Global(Global),
    /// A storage, by the tuple that describes it.
    Storage(Id),
    /// A tensor, by the arguments of the function that builds it. They are looked at when the tensor is wanted.
    Tensor {
        args: Id,
        /// Where the arguments name a type of their own after the first six (`_rebuild_tensor_v3`).
        typed: bool,
    },
}

/// All values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    values: Vec<Value<'a>>,
}

impl<'a> Heap<'a> {
    pub(super) fn add(&mut self, value: Value<'a>) -> Result<Id, Fault> {
        let full = || {
            Fault::Damaged(format!(
                "the pickle makes more than {MOST} values, more than a checkpoint needs"
            ))
        };
        let id = u32::try_from(self.values.len()).map_err(|_| full())?;
        if self.values.len() >= MOST {
            return Err(full());
        }
        self.values.push(value);
        Ok(Id(id))
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        #[cfg(test)]
        looks::count();
        self.values.get(id.0 as usize).unwrap_or(&Value::None)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Value<'a>> {
        #[cfg(test)]
        looks::count();
        self.values.get_mut(id.0 as usize)
    }

    /// The items of a tuple.
    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The type of elements that a global stands for.
    pub(super) fn element(&self, id: Id) -> Option<Element> {
        match self.get(id) {
            Value::Global(Global::Storage(element) | Global::ElementType(element)) => {
                Some(*element)
            }
            _ => None,
        }
    }
}

/// How often values are looked at: what reading a pickle costs, however fast the machine is.
#[cfg(test)]
pub(in crate::files) mod looks {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// What `work` returns, which fails at the first look on this thread beyond `most`.
    pub(in crate::files) fn at_most<T>(most: u64, work: impl FnOnce() -> T) -> T {
        LEFT.set(most);
        let result = work();
        LEFT.set(u64::MAX);
        result
    }

    pub(super) fn count() {
        let left = LEFT.get();
        assert!(left > 0, "more looks than there may be");
        LEFT.set(left - 1);
    }
}
