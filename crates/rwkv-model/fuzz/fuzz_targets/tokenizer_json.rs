//! A `tokenizer.json`: whatever it says, encoding ends, and what it decodes are bytes of its tokens.
#![no_main]

use rwkv_model::tokenizer::Tokenizer;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json("fuzzed", text) else {
        return;
    };
    for sample in ["", "a b  c\n\nd", "the quick brown fox", "\u{e9}\u{4e2d}\u{1f600}"] {
        if let Ok(ids) = tokenizer.encode(sample.as_bytes()) {
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
            let _ = tokenizer.decode(&ids);
        }
    }
});
