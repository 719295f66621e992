//! The functions and classes that a pickle may name. A name that is not in the table is refused, wherever it stands.
//!
//! None of them is run: what a checkpoint needs of each is written here.

use rwkv_kernels::Format;

use super::super::TensorType;
use super::super::error::Fault;
use super::heap::{Heap, Id, Value};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// Makes an empty dictionary.
    OrderedDict,
    /// Makes a tuple of a tuple.
    Size,
    /// Makes a tensor of (storage, first element, sizes, strides, …).
    Tensor,
    /// The same, with the type of the elements as the seventh argument.
    TypedTensor,
    /// Makes a parameter of (tensor, …): the same tensor to us.
    Parameter,
    /// Makes a tensor of (function, class, arguments, …).
    FromType,
    /// A class of storages, by what they hold.
    Storage(Element),
    /// A `torch.dtype`.
    ElementType(Element),
    /// A class or function whose values say nothing about tensors.
    Inert,
}

/// The type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) kind: TensorType,
    /// Bytes of one.
    pub(super) bytes: usize,
}

const fn format(format: Format, bytes: usize) -> Element {
    Element {
        kind: TensorType::Format(format),
        bytes,
    }
}

const fn other(name: &'static str, bytes: usize) -> Element {
    Element {
        kind: TensorType::Other(name),
        bytes,
    }
}

const F32: Element = format(Format::F32, 4);
const F16: Element = format(Format::F16, 2);
const BF16: Element = format(Format::Bf16, 2);
const F64: Element = other("f64", 8);
const U8: Element = other("u8", 1);
const I8: Element = other("i8", 1);
const I16: Element = other("i16", 2);
const I32: Element = other("i32", 4);
const I64: Element = other("i64", 8);
const BOOL: Element = other("bool", 1);
const C64: Element = other("c64", 8);
const C128: Element = other("c128", 16);

/// Module, name in it, meaning.
const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch", "Size", Global::Size),
    ("torch._utils", "_rebuild_tensor", Global::Tensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::TypedTensor),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    (
        "torch._utils",
        "_rebuild_parameter_with_state",
        Global::Parameter,
    ),
    ("torch._tensor", "_rebuild_from_type", Global::FromType),
    ("torch._tensor", "_rebuild_from_type_v2", Global::FromType),
    ("torch", "FloatStorage", Global::Storage(F32)),
    ("torch", "HalfStorage", Global::Storage(F16)),
    ("torch", "BFloat16Storage", Global::Storage(BF16)),
    ("torch", "DoubleStorage", Global::Storage(F64)),
    ("torch", "ByteStorage", Global::Storage(U8)),
    ("torch", "CharStorage", Global::Storage(I8)),
    ("torch", "ShortStorage", Global::Storage(I16)),
    ("torch", "IntStorage", Global::Storage(I32)),
    ("torch", "LongStorage", Global::Storage(I64)),
    ("torch", "BoolStorage", Global::Storage(BOOL)),
    ("torch", "ComplexFloatStorage", Global::Storage(C64)),
    ("torch", "ComplexDoubleStorage", Global::Storage(C128)),
    ("torch", "UntypedStorage", Global::Storage(U8)),
    ("torch.storage", "UntypedStorage", Global::Storage(U8)),
    ("torch", "float32", Global::ElementType(F32)),
    ("torch", "float16", Global::ElementType(F16)),
    ("torch", "bfloat16", Global::ElementType(BF16)),
    ("torch", "float64", Global::ElementType(F64)),
    ("torch", "uint8", Global::ElementType(U8)),
    ("torch", "int8", Global::ElementType(I8)),
    ("torch", "int16", Global::ElementType(I16)),
    ("torch", "int32", Global::ElementType(I32)),
    ("torch", "int64", Global::ElementType(I64)),
    ("torch", "bool", Global::ElementType(BOOL)),
    ("torch", "uint16", Global::ElementType(other("u16", 2))),
    ("torch", "uint32", Global::ElementType(other("u32", 4))),
    ("torch", "uint64", Global::ElementType(other("u64", 8))),
    (
        "torch",
        "float8_e4m3fn",
        Global::ElementType(other("f8_e4m3", 1)),
    ),
    (
        "torch",
        "float8_e5m2",
        Global::ElementType(other("f8_e5m2", 1)),
    ),
    (
        "torch",
        "float8_e4m3fnuz",
        Global::ElementType(other("f8_e4m3fnuz", 1)),
    ),
    (
        "torch",
        "float8_e5m2fnuz",
        Global::ElementType(other("f8_e5m2fnuz", 1)),
    ),
    ("torch", "Tensor", Global::Inert),
    ("torch", "device", Global::Inert),
    ("torch.nn", "Parameter", Global::Inert),
    ("torch.nn.parameter", "Parameter", Global::Inert),
    ("torch.nn.parameter", "Buffer", Global::Inert),
    ("torch.serialization", "_get_layout", Global::Inert),
    // How protocol 2 writes `bytes`.
    ("_codecs", "encode", Global::Inert),
];

/// What `name` of `module` stands for, or [`Fault::Forbidden`].
pub(super) fn find(module: &[u8], name: &[u8]) -> Result<Global, Fault> {
    let row = GLOBALS
        .iter()
        .find(|(m, n, _)| (m.as_bytes(), n.as_bytes()) == (module, name));
    row.map(|(.., global)| *global).ok_or_else(|| {
        let (module, name) = (cut(module), cut(name));
        Fault::Forbidden(format!("{module}.{name}"))
    })
}

/// As much of a name as a message can use.
fn cut(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name.get(..80).unwrap_or(name))
}

/// The value of the call `global(*args)`.
pub(super) fn call(heap: &mut Heap<'_>, global: Global, args: Id) -> Result<Id, Fault> {
    let wrong = |what: &str| Err(Fault::Damaged(format!("the pickle {what}")));
    let Some(items) = heap.tuple(args) else {
        return wrong("calls a function with something else than a tuple");
    };
    match (global, items) {
        (Global::OrderedDict, []) => heap.add(Value::Dict(Vec::new())),
        (Global::OrderedDict, _) => wrong("fills a dictionary in a way that is not read"),
        (Global::Size, [sizes]) => Ok(*sizes),
        (Global::Tensor | Global::TypedTensor, _) => tensor(heap, global, args),
        (Global::Parameter, [tensor, ..]) => match heap.get(*tensor) {
            Value::Tensor { .. } => Ok(*tensor),
            _ => wrong("makes a parameter of something else than a tensor"),
        },
        (Global::FromType, [function, _, inner, ..]) => match heap.get(*function) {
            // Not this function again: a file could nest it without end.
            Value::Global(function @ (Global::Tensor | Global::TypedTensor)) => {
                let (function, inner) = (*function, *inner);
                tensor(heap, function, inner)
            }
            Value::Global(Global::Parameter) => {
                let inner = *inner;
                call(heap, Global::Parameter, inner)
            }
            _ => wrong("makes a tensor by a function that makes none"),
        },
        (Global::Inert, _) => heap.add(Value::Opaque),
        _ => wrong("calls a function with arguments that do not fit it"),
    }
}

fn tensor(heap: &mut Heap<'_>, global: Global, args: Id) -> Result<Id, Fault> {
    let typed = global == Global::TypedTensor;
    heap.add(Value::Tensor { args, typed })
}
