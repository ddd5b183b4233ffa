//! libFuzzer calls [`llmproxy_fuzz::stream`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmproxy_fuzz::stream(data));
