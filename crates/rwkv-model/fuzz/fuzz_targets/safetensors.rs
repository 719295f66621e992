//! A whole file. Other kinds than safetensors are left to their own targets.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.get(8) == Some(&b'{') {
        rwkv_model_fuzz::open(bytes);
    }
});
