//! Every weight type.

use super::{Folder, check, onward};
use rwkv_model::export;
use rwkv_sched::WeightType;

/// Every weight type, with rows of 256 and of 96 elements: name, format of the matrices and of the head at 256, the same
/// at 96, and how far from the source's the logits may be.
const TYPES: [(&str, [&str; 4], f64); 17] = [
    ("f16", ["f16", "f16", "f16", "f16"], 0.0),
    ("q8_0", ["q8_0", "q8_0", "q8_0", "q8_0"], 1.0),
    ("q6_k", ["q6_k", "q6_k", "q8_0", "q8_0"], 1.0),
    ("q5_k_m", ["q5_k", "q6_k", "q5_1", "q8_0"], 1.0),
    ("q5_k", ["q5_k", "q5_k", "q5_1", "q5_1"], 1.0),
    ("q4_k_m", ["q4_k", "q6_k", "q5_0", "q8_0"], 1.0),
    ("q4_k", ["q4_k", "q4_k", "q5_0", "q5_0"], 1.0),
    ("q4_0", ["q4_0", "q4_0", "q4_0", "q4_0"], 1.0),
    ("q4_1", ["q4_1", "q4_1", "q4_1", "q4_1"], 1.0),
    ("q5_0", ["q5_0", "q5_0", "q5_0", "q5_0"], 1.0),
    ("q5_1", ["q5_1", "q5_1", "q5_1", "q5_1"], 1.0),
    ("q2_k", ["q2_k", "q2_k", "q4_0", "q4_0"], 1.0),
    ("q3_k", ["q3_k", "q3_k", "q4_0", "q4_0"], 1.0),
    ("iq4_nl", ["iq4_nl", "iq4_nl", "iq4_nl", "iq4_nl"], 1.0),
    ("int8", ["int8", "int8", "int8", "int8"], 1.0),
    ("nf4", ["nf4", "nf4", "nf4", "nf4"], 1.0),
    ("sf4", ["sf4", "sf4", "sf4", "sf4"], 1.0),
];

#[test]
fn weight_types() {
    assert!(
        TYPES
            .iter()
            .map(|t| t.0)
            .eq(WeightType::ALL.map(WeightType::name))
    );
    let folder = Folder::new();
    for spec in [
        "v7:2x256:vocab=256,ffn=512",
        "v7:2x96:vocab=256,head=32,ffn=144",
        "v6:2x256:vocab=256,ffn=512",
        "v6:2x96:vocab=256,head=32,ffn=144",
    ] {
        let input = folder.path("in.safetensors");
        export::synthesize(&spec.parse().unwrap(), &input, &mut onward).unwrap();
        for (name, formats, bound) in TYPES {
            let ggml = !["int8", "nf4", "sf4"].contains(&name);
            let names = if ggml { LLAMA } else { ORIGINAL };
            let output = folder.path(if ggml { "out.gguf" } else { "out.safetensors" });
            let file = check(&input, &output, Some(name), 0.0..=bound);
            let [body, head] = if spec.contains("256:") {
                [formats[0], formats[1]]
            } else {
                [formats[2], formats[3]]
            };
            // Rows of 144 are no whole number of anybody's blocks.
            let narrow = if spec.contains("ffn=144") {
                "f16"
            } else {
                body
            };
            for (tensor, want) in names.into_iter().zip([body, body, body, narrow, head]) {
                let kind = file.checkpoint().tensor(tensor).unwrap().kind.to_string();
                // What follows the name is the size of the blocks that suit the matrix.
                let sized = kind.split(['-', ':', '_']).next() == Some(want);
                assert!(
                    kind == want || (!ggml && sized),
                    "{spec}, {name}: {tensor} is {kind}"
                );
            }
        }
    }
}

/// Of what [`TYPES`] speaks: three matrices, the one with rows as long as the FFN is wide, and the head.
const LLAMA: [&str; 5] = [
    "token_embd.weight",
    "blk.0.time_mix_key.weight",
    "blk.1.channel_mix_key.weight",
    "blk.1.channel_mix_value.weight",
    "output.weight",
];
const ORIGINAL: [&str; 5] = [
    "emb.weight",
    "blocks.0.att.key.weight",
    "blocks.1.ffn.key.weight",
    "blocks.1.ffn.value.weight",
    "head.weight",
];
