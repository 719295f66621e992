//! Models that are made up.

use super::{Folder, logits, onward};
use rwkv_kernels::Format;
use rwkv_model::{
    ModelFile, Tokenizer,
    export::{self, SyntheticSpec},
};

#[test]
fn made_up_models() {
    let folder = Folder::new();
    std::fs::remove_file(folder.path("vocab.txt")).unwrap();
    for version in ["v4", "v5.0", "v5.1", "v5.2", "v6", "v7", "v7a"] {
        let head = if version == "v4" { "" } else { ",head=32" };
        let spec: SyntheticSpec = format!("{version}:2x64:vocab=256{head}").parse().unwrap();
        let output = folder.path("model.safetensors");
        let written = export::synthesize(&spec, &output, &mut onward).unwrap();
        assert!(written.tensors.iter().all(|t| t.format == Format::F16));
        let once = std::fs::read(&output).unwrap();
        export::synthesize(&spec, &output, &mut onward).unwrap();
        assert!(
            std::fs::read(&output).unwrap() == once,
            "{version}: the same each time"
        );
        let other = format!("{version}:2x64:vocab=256{head},seed=1")
            .parse()
            .unwrap();
        export::synthesize(&other, &output, &mut onward).unwrap();
        assert!(std::fs::read(&output).unwrap() != once);
        let gguf = export::synthesize(&spec, &folder.path("model.gguf"), &mut onward);
        match version {
            "v6" | "v7" => assert!(gguf.is_ok()),
            _ => {
                let error = gguf.unwrap_err().to_string();
                assert!(error.contains("no architecture for RWKV-"), "{error}");
            }
        }
    }
    let spec: SyntheticSpec = "v7:2x64:vocab=256".parse().unwrap();
    let [a, b] = ["a.safetensors", "b.gguf"].map(|name| {
        let path = folder.path(name);
        export::synthesize(&spec, &path, &mut onward).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let config = file.config();
        assert_eq!(
            [config.layers, config.width, config.ffn, config.vocab],
            [2, 64, 256, 256]
        );
        assert_eq!(
            file.tokenizer(None).unwrap().vocab_size(),
            Tokenizer::bytes().vocab_size()
        );
        logits(&file)
    });
    assert!(a == b);
}
