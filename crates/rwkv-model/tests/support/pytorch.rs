//! A writer of PyTorch checkpoints, as `torch.save` leaves them.

use super::checkpoint::Tensors;
use rwkv_kernels::Format;

/// A pickle, instruction by instruction.
struct Pickle(Vec<u8>);

impl Pickle {
    fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.op(b"X")
            .op(&(text.len() as u32).to_le_bytes())
            .op(text.as_bytes())
    }

    fn ints(&mut self, numbers: &[usize]) -> &mut Self {
        self.op(b"(");
        for number in numbers {
            self.int(*number);
        }
        self.op(b"t")
    }

    fn int(&mut self, number: usize) -> &mut Self {
        self.op(b"J").op(&(number as u32).to_le_bytes())
    }
}

/// A checkpoint of `tensors` in F32 or F16, each in a storage of its own.
pub(crate) fn pytorch(tensors: &Tensors, format: Format) -> Vec<u8> {
    let (class, size): (&[u8], _) = match format {
        Format::F32 => (b"ctorch\nFloatStorage\n", 4),
        Format::F16 => (b"ctorch\nHalfStorage\n", 2),
        other => panic!("no storage of {other}"),
    };
    let mut pickle = Pickle(b"\x80\x02}".to_vec());
    let mut entries = Vec::new();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let mut bytes = vec![0; tensor.values.len() * size];
        format.spec().quantize(&tensor.values, &mut bytes);
        let mut strides = vec![1; tensor.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * tensor.shape[i];
        }
        pickle
            .text(name)
            .op(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .op(class)
            .text(&index.to_string())
            .text("cpu")
            .int(tensor.values.len())
            .op(b"tQ")
            .int(0)
            .ints(&tensor.shape)
            .ints(&strides)
            .op(b"\x89ccollections\nOrderedDict\n)RtRs");
        entries.push((format!("model/data/{index}"), bytes));
    }
    pickle.op(b".");
    entries.insert(0, ("model/data.pkl".to_owned(), pickle.0));
    zip(&entries)
}

/// A zip archive of `entries`, not compressed.
fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let number = |n: usize| (n as u32).to_le_bytes();
    for (name, content) in entries {
        let at = number(file.len());
        let sizes = [number(content.len()), number(content.len())].concat();
        let name_len = (name.len() as u16).to_le_bytes();
        file.extend([b"PK\x03\x04", &[0; 14][..], &sizes, &name_len, &[0; 2]].concat());
        file.extend([name.as_bytes(), content].concat());
        directory.extend([b"PK\x01\x02", &[0; 16][..], &sizes, &name_len].concat());
        directory.extend([&[0; 12][..], &at, name.as_bytes()].concat());
    }
    let (start, count) = (number(file.len()), (entries.len() as u16).to_le_bytes());
    let end = [b"PK\x05\x06", &[0; 4][..], &count, &count];
    let len = number(directory.len());
    file.extend(directory);
    file.extend([&end.concat()[..], &len, &start, &[0; 2]].concat());
    file
}
