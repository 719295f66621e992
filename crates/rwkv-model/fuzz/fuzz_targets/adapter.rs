//! An adapter: the text of an `adapter_config.json`, a zero byte, and a checkpoint, read for a small model.
#![no_main]

use rwkv_model::{
    AdapterFile,
    export::{SyntheticSpec, SyntheticWeights},
    files::Checkpoint,
};
use rwkv_sched::Model;
use std::sync::{Arc, LazyLock};

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let spec: SyntheticSpec = "v7:2x16:vocab=20,head=8,ffn=32".parse().unwrap();
    let weights = Arc::new(SyntheticWeights::new(&spec));
    Model::new(spec.config().clone(), weights).unwrap()
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let (config, file) = bytes.split_at(end);
    let file = file.get(1..).unwrap_or_default();
    if let Ok(checkpoint) = Checkpoint::from_vec("fuzzed", file.to_vec()) {
        let _ = AdapterFile::from_checkpoint(&checkpoint, Some(config), &MODEL);
        let _ = AdapterFile::from_checkpoint(&checkpoint, None, &MODEL);
    }
});
