//! What the targets have in common.

use rwkv_model::{
    ModelFile,
    files::{Checkpoint, Value},
};

/// Opens `bytes` as a checkpoint and looks at all of it.
pub fn open(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_vec("fuzzed", bytes.to_vec()) else {
        return;
    };
    for tensor in checkpoint.tensors() {
        let elements: usize = tensor.shape.iter().product();
        assert!(elements > 0 || tensor.bytes.is_empty(), "{tensor:?}");
        if let (Ok(format), Some((&cols, rows))) = (tensor.format(), tensor.shape.split_last()) {
            let row = format.row_bytes(cols).unwrap();
            assert_eq!(
                row * rows.iter().product::<usize>(),
                tensor.bytes.len(),
                "{tensor:?}"
            );
        }
        // Of a file that is mapped, this would be a page that is not there.
        let _ = (tensor.bytes.first(), tensor.bytes.last());
        assert_eq!(checkpoint.get(tensor.name).unwrap().bytes, tensor.bytes);
    }
    if let Ok(file) = ModelFile::from_checkpoint(checkpoint.clone(), None) {
        let _ = file.model();
        let _ = file.tokenizer(None);
        let _ = file.encoding_errors();
    }
    let metadata = checkpoint.metadata();
    for key in metadata.keys() {
        let _ = (
            metadata.u64(key),
            metadata.f64(key),
            metadata.bool(key),
            metadata.string(key),
        );
        let _ = (
            metadata.integers(key),
            metadata.strings(key).map(Iterator::count),
        );
        if let Some(Value::Array(array)) = metadata.get(key) {
            assert_eq!(array.iter().count(), array.len());
        }
    }
}
