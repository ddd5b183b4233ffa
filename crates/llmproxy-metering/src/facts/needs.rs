//! Whether an answer must have a given shape of JSON, however the request says so.

use std::borrow::Cow;

use llmproxy_core::{Api, Endpoint};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

/// The Responses API's `text`, and Anthropic's `output_config`.
#[derive(Deserialize)]
struct Formatted<'a> {
    #[serde(borrow)]
    format: Option<Typed<'a>>,
}

/// TGI's `parameters`.
#[derive(Deserialize)]
struct Parameters<'a> {
    #[serde(borrow)]
    grammar: Option<Typed<'a>>,
}

/// vLLM's `structured_outputs`, of which only these two are JSON.
#[derive(Deserialize)]
struct Structured<'a> {
    #[serde(borrow)]
    json: Option<&'a RawValue>,
    json_object: Option<bool>,
}

/// Whether this member of a request for `endpoint` asks for JSON, or for JSON of a certain shape.
pub(super) fn is_shape(endpoint: Endpoint, key: &str, value: &RawValue) -> bool {
    match key {
        "response_format" | "output_format" => is_json(&read(value)),
        "text" | "output_config" => read(value).is_some_and(|Formatted { format }| is_json(&format)),
        "parameters" => read(value).is_some_and(|Parameters { grammar }| is_json(&grammar)),
        "structured_outputs" => read(value).is_some_and(|structured: Structured<'_>| {
            structured.json.is_some() || structured.json_object == Some(true)
        }),
        // A word or a schema in Ollama; elsewhere the word is for sound and images.
        "format" if endpoint.api() == Api::Ollama => value.get() == r#""json""# || value.get().starts_with('{'),
        // vLLM's old key, and what SGLang and llama.cpp call it.
        "guided_json" | "json_schema" => value.get() != "null",
        _ => false,
    }
}

fn read<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

fn is_json(typed: &Option<Typed<'_>>) -> bool {
    let kind = typed.as_ref().and_then(|typed| typed.kind.as_deref());
    matches!(kind, Some("json_schema" | "json_object" | "json"))
}

#[cfg(test)]
mod tests {
    use super::{super::find, *};

    #[test]
    fn json_is_asked_for_in_many_ways() {
        let check = |path: &str, body: &str, expected| {
            let (call, _) = find(Endpoint::of(path), body.as_bytes()).expect(body);
            assert_eq!(call.needs.json_schema, expected, "{path} {body}");
        };
        let chat = "/v1/chat/completions";
        check(chat, r#"{"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"text"}}}}"#, true);
        check(chat, r#"{"response_format":{"type":"json_object"}}"#, true);
        check(chat, r#"{"response_format":{"type":"text"}}"#, false);
        check(chat, r#"{"response_format":null}"#, false);
        check("/v1/audio/speech", r#"{"response_format":"json"}"#, false);
        check("/v1/responses", r#"{"text":{"format":{"type":"json_schema","schema":{}}}}"#, true);
        check("/v1/responses", r#"{"text":{"format":{"type":"text"},"verbosity":"low"}}"#, false);
        check("/v1/messages", r#"{"output_config":{"format":{"type":"json_schema","schema":{}}}}"#, true);
        check("/v1/messages", r#"{"output_format":{"type":"json_schema","schema":{}}}"#, true);
        for path in ["/api/chat", "/api/generate"] {
            check(path, r#"{"format":"json"}"#, true);
            check(path, r#"{"format":{"type":"object"}}"#, true);
            check(path, r#"{"format":""}"#, false);
        }
        check(chat, r#"{"format":"json"}"#, false);
        check(chat, r#"{"guided_json":{"type":"object"}}"#, true);
        check(chat, r#"{"guided_json":null}"#, false);
        check(chat, r#"{"structured_outputs":{"json":{"type":"object"}}}"#, true);
        check(chat, r#"{"structured_outputs":{"json":null,"json_object":true}}"#, true);
        check(chat, r#"{"structured_outputs":{"regex":"a+","json":null}}"#, false);
        check("/completion", r#"{"json_schema":{}}"#, true);
        check("/generate", r#"{"inputs":"a","parameters":{"grammar":{"type":"json","value":{}}}}"#, true);
        check("/generate", r#"{"inputs":"a","parameters":{"grammar":{"type":"regex","value":"a"}}}"#, false);
        check("/generate", r#"{"inputs":"a","parameters":{"max_new_tokens":3}}"#, false);
    }
}
