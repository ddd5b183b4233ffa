//! libFuzzer calls [`llmproxy_fuzz::heads`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmproxy_fuzz::heads(data));
