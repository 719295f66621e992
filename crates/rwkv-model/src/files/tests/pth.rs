//! A writer of PyTorch checkpoints, true and false ones.

use super::Planned;
use crate::files::TensorType;
use rwkv_kernels::Format;
use std::collections::BTreeMap;

/// As what `torch.save` puts a tensor into the pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrap {
    Plain,
    Parameter,
    FromType,
    ParameterFromType,
    /// With an untyped storage, and a type of its own.
    Typed,
}

/// How a checkpoint is written; tensors and their bytes are the same in all ways.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "all combinations are tried")]
pub(super) struct Style {
    /// Of the archive, with its slash.
    pub(super) root: String,
    pub(super) zip64: bool,
    pub(super) byte_order: bool,
    /// Contents begin at multiples of this, as PyTorch pads them.
    pub(super) align: usize,
    pub(super) wrap: Wrap,
    /// Inside of another dictionary.
    pub(super) nested: bool,
    /// Before each name.
    pub(super) prefix: &'static str,
    /// One storage for all tensors of a type.
    pub(super) shared: bool,
    /// The last dimension outermost, so that elements are not in order.
    pub(super) reversed: bool,
}

pub(super) const PLAIN: Style = Style {
    root: String::new(),
    zip64: false,
    byte_order: true,
    align: 64,
    wrap: Wrap::Plain,
    nested: false,
    prefix: "",
    shared: false,
    reversed: false,
};

/// Type, name of its storage class, name of its `torch.dtype`, bytes.
const CLASSES: [(TensorType, &str, &str, usize); 6] = [
    (
        TensorType::Format(Format::F32),
        "FloatStorage",
        "float32",
        4,
    ),
    (TensorType::Format(Format::F16), "HalfStorage", "float16", 2),
    (
        TensorType::Format(Format::Bf16),
        "BFloat16Storage",
        "bfloat16",
        2,
    ),
    (TensorType::Other("f64"), "DoubleStorage", "float64", 8),
    (TensorType::Other("i64"), "LongStorage", "int64", 8),
    (TensorType::Other("bool"), "BoolStorage", "bool", 1),
];

/// A pickle, instruction by instruction.
pub(super) struct Pickle(pub(super) Vec<u8>);

impl Pickle {
    pub(super) fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    pub(super) fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(super) fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub(super) fn text(self, text: &str) -> Self {
        let len = u32::try_from(text.len()).unwrap();
        self.op(b"X").op(&len.to_le_bytes()).op(text.as_bytes())
    }

    /// An integer, in the shortest way that Python has.
    pub(super) fn int(self, number: i64) -> Self {
        if let Ok(n) = u8::try_from(number) {
            return self.op(&[b'K', n]);
        }
        if let Ok(n) = u16::try_from(number) {
            return self.op(b"M").op(&n.to_le_bytes());
        }
        if let Ok(n) = i32::try_from(number) {
            return self.op(b"J").op(&n.to_le_bytes());
        }
        self.op(b"\x8a\x08").op(&number.to_le_bytes())
    }

    pub(super) fn ints(self, numbers: &[i64]) -> Self {
        numbers
            .iter()
            .fold(self.op(b"("), |pickle, number| pickle.int(*number))
            .op(b"t")
    }

    /// What stands for a storage of `count` elements.
    pub(super) fn storage(self, class: &str, key: &str, count: i64) -> Self {
        self.op(b"(")
            .text("storage")
            .global("torch", class)
            .text(key)
            .text("cpu")
            .int(count)
            .op(b"tQ")
    }

    /// Ends the arguments of a tensor that began with `(` and a storage.
    pub(super) fn place(self, first: i64, sizes: &[i64], strides: &[i64]) -> Self {
        self.int(first)
            .ints(sizes)
            .ints(strides)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")R")
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A zip archive of `entries`, not compressed.
pub(super) fn zip(entries: &[(String, Vec<u8>)], zip64: bool, align: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    let u16 = |n: usize| u16::try_from(n).unwrap().to_le_bytes();
    let u32 = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    let u64 = |n: usize| (n as u64).to_le_bytes();
    for (name, content) in entries {
        let at = file.len();
        // PyTorch pads with an extra field of its own, `FB`.
        let pad = (at + 30 + name.len() + 4).next_multiple_of(align) - (at + 30 + name.len() + 4);
        let same = [
            &[0; 12][..],
            &u32(content.len()),
            &u32(content.len()),
            &u16(name.len()),
        ]
        .concat();
        file.extend([b"PK\x03\x04\0\0", &same[..], &u16(pad + 4), name.as_bytes()].concat());
        file.extend([b"FB", &u16(pad)[..], &vec![b'Z'; pad], content].concat());

        let extra = if zip64 {
            let numbers = [u64(content.len()), u64(content.len()), u64(at)].concat();
            [b"FB\0\0\x01\0", &u16(24)[..], &numbers].concat()
        } else {
            Vec::new()
        };
        let number = |n| if zip64 { [0xff; 4] } else { u32(n) };
        let len = number(content.len());
        directory.extend(
            [
                b"PK\x01\x02\0\0\0\0",
                &[0; 12][..],
                &len,
                &len,
                &u16(name.len()),
            ]
            .concat(),
        );
        directory.extend(
            [
                &u16(extra.len())[..],
                &[0; 10],
                &number(at),
                name.as_bytes(),
                &extra,
            ]
            .concat(),
        );
    }
    let (start, count) = (file.len(), entries.len());
    file.extend(&directory);
    if zip64 {
        let at = file.len();
        let numbers = [count, count, directory.len(), start].map(u64).concat();
        file.extend([b"PK\x06\x06", &u64(44)[..], &[0; 12], &numbers].concat());
        file.extend([b"PK\x06\x07", &[0; 4][..], &u64(at), &u32(1)].concat());
        file.extend([b"PK\x05\x06", &[0; 4][..], &[0xff; 12], &[0; 2]].concat());
    } else {
        let [len, start] = [directory.len(), start].map(u32);
        let counts = [u16(count), u16(count)].concat();
        file.extend([b"PK\x05\x06", &[0; 4][..], &counts, &len, &start, &[0; 2]].concat());
    }
    file
}

/// A checkpoint of one pickle and some storages, `data/0` and so on.
pub(super) fn archive(pickle: Vec<u8>, storages: &[&[u8]]) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_owned(), pickle)];
    for (key, bytes) in storages.iter().enumerate() {
        entries.push((format!("archive/data/{key}"), bytes.to_vec()));
    }
    zip(&entries, false, 1)
}

/// A checkpoint of `tensors` and a text.
pub(super) fn write(tensors: &BTreeMap<String, Planned>, style: &Style) -> Vec<u8> {
    let mut storages: Vec<(TensorType, Vec<u8>)> = Vec::new();
    let mut pickle = Pickle::new();
    if style.nested {
        pickle = pickle
            .op(b"}(")
            .text("note")
            .text("outside")
            .text("state_dict");
    }
    pickle = pickle.global("collections", "OrderedDict").op(b")R(");
    for (name, (kind, shape, bytes)) in tensors {
        let class = CLASSES.iter().find(|(known, ..)| known == kind);
        let &(_, class, dtype, element) = class.unwrap();
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i].max(1);
        }
        let mut bytes = bytes.clone();
        if style.reversed {
            bytes = reverse(&bytes, shape, &strides, element);
            strides.fill(1);
            for i in 1..shape.len() {
                strides[i] = strides[i - 1] * shape[i - 1].max(1);
            }
        }
        let same = storages
            .iter()
            .position(|(other, _)| style.shared && other == kind);
        let key = same.unwrap_or_else(|| {
            storages.push((*kind, Vec::new()));
            storages.len() - 1
        });
        let storage = &mut storages[key].1;
        let first = storage.len() / element;
        storage.extend(bytes);
        // How long a shared storage is, is known at the end: as far as here is enough.
        let count = storage.len() / element;
        let signed = |numbers: &[usize]| {
            numbers
                .iter()
                .map(|n| i64::try_from(*n).unwrap())
                .collect::<Vec<_>>()
        };
        let [first, count] = [first, count].map(|n| i64::try_from(n).unwrap());
        let (sizes, strides) = (signed(shape), signed(&strides));

        pickle = pickle.text(&format!("{}{name}", style.prefix));
        let parameter = matches!(style.wrap, Wrap::Parameter | Wrap::ParameterFromType);
        if parameter {
            pickle = pickle.global("torch._utils", "_rebuild_parameter").op(b"(");
        }
        let from_type = matches!(style.wrap, Wrap::FromType | Wrap::ParameterFromType);
        if from_type {
            pickle = pickle
                .global("torch._tensor", "_rebuild_from_type_v2")
                .op(b"(");
        }
        let key = key.to_string();
        if style.wrap == Wrap::Typed {
            let bytes = count * i64::try_from(element).unwrap();
            pickle = pickle
                .global("torch._utils", "_rebuild_tensor_v3")
                .op(b"(")
                .storage("UntypedStorage", &key, bytes)
                .place(first, &sizes, &strides)
                .global("torch", dtype);
        } else {
            pickle = pickle.global("torch._utils", "_rebuild_tensor_v2");
            if from_type {
                pickle = pickle.global("torch.nn.parameter", "Parameter");
            }
            pickle = pickle
                .op(b"(")
                .storage(class, &key, count)
                .place(first, &sizes, &strides);
        }
        pickle = match style.wrap {
            Wrap::Plain | Wrap::Typed => pickle.op(b"tR"),
            Wrap::Parameter => pickle.op(b"tR\x88").op(b"}tR"),
            Wrap::FromType => pickle.op(b"t}tR"),
            Wrap::ParameterFromType => pickle.op(b"t}tR\x88}tR"),
        };
        // Kept, dropped and recalled.
        pickle = pickle.op(b"r\0\x01\0\x000j\0\x01\0\0");
    }
    pickle = pickle.text("version").int(7).op(b"u");
    // Attributes of the dictionary.
    pickle = pickle.op(b"}").text("_metadata").op(b"}sb");
    if style.nested {
        pickle = pickle.op(b"u");
    }
    let name = |name: &str| format!("{}{name}", style.root);
    let mut entries = vec![(name("data.pkl"), pickle.end())];
    if style.byte_order {
        entries.push((name("byteorder"), b"little".to_vec()));
    }
    for (key, (_, bytes)) in storages.into_iter().enumerate() {
        entries.push((name(&format!("data/{key}")), bytes));
    }
    entries.push((name("version"), b"3\n".to_vec()));
    zip(&entries, style.zip64, style.align)
}

/// The elements of a tensor with the first dimension innermost.
fn reverse(bytes: &[u8], shape: &[usize], strides: &[usize], element: usize) -> Vec<u8> {
    let mut reversed = Vec::new();
    for mut n in 0..bytes.len() / element {
        let mut from = 0;
        for (size, stride) in shape.iter().zip(strides) {
            from += n % size * stride;
            n /= size;
        }
        reversed.extend(&bytes[from * element..][..element]);
    }
    reversed
}
