//! A vocabulary in the World syntax: what it decodes, it encodes.
#![no_main]

use rwkv_model::tokenizer::Tokenizer;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_vocab_text("fuzzed", text) else {
        return;
    };
    for id in 0..u32::try_from(tokenizer.vocab_size().min(4096)).unwrap() {
        if let Some(bytes) = tokenizer.token(id) {
            assert_eq!(
                tokenizer.encode(bytes).unwrap(),
                [id],
                "the longest match is the token itself"
            );
        }
    }
    if let Ok(ids) = tokenizer.encode(text) {
        assert_eq!(tokenizer.decode(&ids), text);
    }
});
