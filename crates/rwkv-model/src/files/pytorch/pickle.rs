//! Pickles of protocol 2, as `torch.save` writes them: a machine with a stack and a memo, and no code to run.
//!
//! Source: the opcode list of Python's `pickletools`. Every instruction that protocol 2 uses for dictionaries, lists,
//! tuples, numbers and text is here; functions and classes come from a table ([`globals`]). Each
//! instruction costs time and memory in proportion to its bytes and to what it takes off the stack, so that a pickle
//! of bounded length is read in bounded time.

use std::collections::HashMap;

use super::super::error::Fault;
use super::globals;
use super::heap::{Heap, Id, Value};

/// The longest pickle that we read, in bytes. Checkpoints have about 200 for each tensor.
pub(super) const LONGEST: usize = 8 << 20;
/// How many marks may be open at a time. Checkpoints need about five.
const DEEPEST: usize = 256;
/// The most values on the stack. Python writes lists and dictionaries a thousand items at a time.
const TALLEST: usize = 1 << 17;
const PROTOCOL: u8 = 2;

/// Runs a pickle: all its values, and which one it is about.
pub(super) fn run(bytes: &[u8]) -> Result<(Heap<'_>, Id), Fault> {
    if bytes.len() > LONGEST {
        return Err(Fault::Damaged(format!(
            "the pickle has {} bytes, more than {LONGEST}",
            bytes.len()
        )));
    }
    let mut machine = Machine {
        bytes,
        at: 0,
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        if let Some(root) = machine.step()? {
            return Ok((machine.heap, root));
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap<'a>,
    stack: Vec<Id>,
    /// Heights of the stack where a mark lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs one instruction; the last one gives the result.
    fn step(&mut self) -> Result<Option<Id>, Fault> {
        let [code] = self.array()?;
        match code {
            // PROTO
            b'\x80' => match self.array()? {
                [PROTOCOL] => {}
                [other] => {
                    return Err(Fault::Unsupported(format!(
                        "the pickle has protocol {other}, not {PROTOCOL}; save the checkpoint again with \
                         torch.save's own pickle_protocol"
                    )));
                }
            },
            // STOP
            b'.' => return self.pop().map(Some),
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.make(Value::None)?,
            b'\x88' => self.make(Value::Bool(true))?,
            b'\x89' => self.make(Value::Bool(false))?,
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            b'K' => {
                let number = u8::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            b'\x8a' => {
                let [len] = self.array()?;
                let number = long(self.take(len.into())?);
                self.make(number.map_or(Value::Opaque, Value::Int))?;
            }
            // BINFLOAT, the one number that is big-endian
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.make(Value::Float(number))?;
            }
            // BINUNICODE
            b'X' => {
                let len = u32::from_le_bytes(self.array()?);
                let text = std::str::from_utf8(self.take(len as usize)?)
                    .map_err(|_| self.wrong("has text that is not UTF-8"))?;
                self.make(Value::Text(text))?;
            }
            // BINSTRING, SHORT_BINSTRING: byte strings of Python 2
            b'T' => {
                let len = u32::from_le_bytes(self.array()?);
                self.byte_string(len as usize)?;
            }
            b'U' => {
                let [len] = self.array()?;
                self.byte_string(len.into())?;
            }
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b')' => self.make(Value::Tuple(Vec::new()))?,
            b']' => self.make(Value::List(Vec::new()))?,
            b'}' => self.make(Value::Dict(Vec::new()))?,
            // TUPLE1, TUPLE2, TUPLE3, TUPLE
            b'\x85'..=b'\x87' => {
                let mut items = Vec::new();
                for _ in b'\x85'..=code {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.make(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_marked()?;
                self.make(Value::Tuple(items))?;
            }
            // APPEND, APPENDS
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_marked()?;
                self.append(&items)?;
            }
            // SETITEM, SETITEMS
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_marked()?;
                self.set(&items)?;
            }
            // MARK, POP, POP_MARK
            b'(' => {
                if self.marks.len() >= DEEPEST {
                    return Err(self.wrong(&format!("is nested deeper than {DEEPEST}")));
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_marked()?;
            }
            // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
            b'q' => {
                let place = u8::from_le_bytes(self.array()?);
                self.remember(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.array()?);
                self.remember(place)?;
            }
            b'h' => {
                let place = u8::from_le_bytes(self.array()?);
                self.recall(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.array()?);
                self.recall(place)?;
            }
            // GLOBAL
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let global = globals::find(module, name)?;
                self.make(Value::Global(global))?;
            }
            // REDUCE, NEWOBJ: to us, a class is what makes its values
            b'R' | b'\x81' => {
                let args = self.pop()?;
                let function = self.pop()?;
                let Value::Global(global) = *self.heap.get(function) else {
                    return Err(self.wrong("calls something that is no function"));
                };
                let made = globals::call(&mut self.heap, global, args)?;
                self.push(made)?;
            }
            // BUILD: attributes, such as the versions that PyTorch notes on a dictionary
            b'b' => {
                self.pop()?;
                let object = self.top()?;
                if !matches!(
                    self.heap.get(object),
                    Value::Dict(_) | Value::Tensor { .. } | Value::Opaque
                ) {
                    return Err(self.wrong("gives attributes to something that has none"));
                }
            }
            // BINPERSID: what is kept outside of the pickle
            b'Q' => {
                let about = self.pop()?;
                self.make(Value::Storage(about))?;
            }
            _ => {
                return Err(self.wrong(&format!(
                    "has the instruction {code:#04x}, which checkpoints do not use"
                )));
            }
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let taken = rest
            .get(..len)
            .ok_or_else(|| self.wrong("ends in the middle"))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.take(N)?.first_chunk().copied();
        taken.ok_or_else(|| self.wrong("ends in the middle"))
    }

    /// The bytes up to the next line feed, which is left out.
    fn line(&mut self) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let len = rest.iter().position(|byte| *byte == b'\n');
        let len = len.ok_or_else(|| self.wrong("ends in the middle"))?;
        let line = self.take(len)?;
        self.take(1)?;
        Ok(line)
    }

    fn byte_string(&mut self, len: usize) -> Result<(), Fault> {
        let text = std::str::from_utf8(self.take(len)?);
        self.make(text.map_or(Value::Opaque, Value::Text))
    }

    fn make(&mut self, value: Value<'a>) -> Result<(), Fault> {
        let id = self.heap.add(value)?;
        self.push(id)
    }

    fn push(&mut self, id: Id) -> Result<(), Fault> {
        if self.stack.len() >= TALLEST {
            return Err(self.wrong(&format!("puts more than {TALLEST} values on its stack")));
        }
        self.stack.push(id);
        Ok(())
    }

    /// The value on top, above the last mark.
    fn top(&self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(<[Id]>::last);
        above
            .copied()
            .ok_or_else(|| self.wrong("takes a value where there is none"))
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Everything above the last mark, and the mark.
    fn pop_marked(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop();
        match mark.filter(|mark| *mark <= self.stack.len()) {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.wrong("ends a group that has no beginning")),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Fault> {
        let list = self.top()?;
        match self.heap.get_mut(list) {
            Some(Value::List(list)) => {
                list.extend_from_slice(items);
                Ok(())
            }
            _ => Err(self.wrong("appends to something that is no list")),
        }
    }

    fn set(&mut self, items: &[Id]) -> Result<(), Fault> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks();
        match self.heap.get_mut(dict) {
            Some(Value::Dict(dict)) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.wrong("fills something that is no dictionary, or a key has no value")),
        }
    }

    fn remember(&mut self, place: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), Fault> {
        let id = self.memo.get(&place).copied();
        let id = id.ok_or_else(|| self.wrong("recalls a value that it did not keep"))?;
        self.push(id)
    }

    fn wrong(&self, what: &str) -> Fault {
        Fault::Damaged(format!("the pickle {what} (before its byte {})", self.at))
    }
}

/// A little-endian number in two's complement, if it is not too large.
fn long(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}
