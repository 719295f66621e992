//! The JSON files of a Hugging Face folder.
#![no_main]

use rwkv_model::files::hugging_face::{parse_config, parse_index};

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    let _ = parse_config("config.json", json);
    let index = parse_index("model.safetensors.index.json", json).unwrap_or_default();
    for shard in index.values() {
        let path = std::path::Path::new(shard);
        let normal = |part| matches!(part, std::path::Component::Normal(_));
        assert!(path.components().all(normal), "{shard:?} leaves the folder");
    }
});
