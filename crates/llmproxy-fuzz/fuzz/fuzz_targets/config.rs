//! libFuzzer calls [`llmproxy_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmproxy_fuzz::config(data));
