//! A whole file. Other kinds than gguf are left to their own targets.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"GGUF") {
        rwkv_model_fuzz::open(bytes);
    }
});
