//! libFuzzer calls [`llmproxy_fuzz::form`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmproxy_fuzz::form(data));
