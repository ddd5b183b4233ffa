//! libFuzzer calls [`llmproxy_fuzz::scanner`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmproxy_fuzz::scanner(data));
