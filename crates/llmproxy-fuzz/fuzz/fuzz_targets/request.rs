//! libFuzzer calls [`llmproxy_fuzz::request`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmproxy_fuzz::request(data));
