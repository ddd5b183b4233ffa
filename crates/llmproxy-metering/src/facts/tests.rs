//! What is found in requests, and that edits change nothing else.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn found(path: &str, body: &str) -> (Call, Edits) {
    find(Endpoint::of(path), body.as_bytes()).expect(body)
}

fn refused(path: &str, body: &str) -> InspectError {
    find(Endpoint::of(path), body.as_bytes()).expect_err(body)
}

fn with_usage(body: &str) -> String {
    let (_, edits) = found(CHAT, body);
    String::from_utf8(edits.apply(&Bytes::copy_from_slice(body.as_bytes()), None, true).to_vec()).unwrap()
}

#[test]
fn the_model_is_found_and_can_be_replaced_where_it_stands() {
    let body = r#"{ "temperature":0.10, "model" : "llama\u00203" ,"messages":[]}"#;
    let (call, edits) = found(CHAT, body);
    assert_eq!(call.model.as_deref(), Some("llama 3"));
    let sent = edits.apply(&Bytes::copy_from_slice(body.as_bytes()), Some("qwen"), false);
    assert_eq!(sent, r#"{ "temperature":0.10, "model" : "qwen" ,"messages":[]}"#);
}

#[test]
fn a_model_inside_of_something_else_is_not_the_model() {
    let (call, _) = found(CHAT, r#"{"metadata":{"model":"x"},"messages":[{"content":"\"model\":\"y\""}]}"#);
    assert_eq!(call.model, None);
}

#[test]
fn ollama_streams_unless_told_otherwise() {
    let check = |path, body, expected| assert_eq!(found(path, body).0.stream, expected, "{path} {body}");
    check("/api/chat", r#"{"model":"a"}"#, true);
    check("/api/chat", r#"{"model":"a","stream":null}"#, true);
    check("/api/generate", r#"{"model":"a","stream":false}"#, false);
    check("/api/embed", r#"{"model":"a"}"#, false);
    check(CHAT, r#"{"model":"a"}"#, false);
    check(CHAT, r#"{"model":"a","stream":true}"#, true);
}

#[test]
fn the_bound_of_the_answer_counts_for_all_choices() {
    let check = |body: &str, expected| assert_eq!(found(CHAT, body).0.max_output, expected, "{body}");
    check(r#"{"max_tokens":100}"#, Some(100));
    check(r#"{"max_completion_tokens":100,"n":3}"#, Some(300));
    check(r#"{"max_output_tokens":7,"max_tokens":5}"#, Some(7));
    check(r#"{"options":{"num_predict":42,"seed":1}}"#, Some(42));
    check(r#"{"options":{"num_predict":-1}}"#, None);
    check(r#"{"max_tokens":null}"#, None);
    check(r#"{"max_tokens":"many"}"#, None);
    check(r#"{"max_tokens":1e3}"#, Some(1000));
    check(r#"{"max_tokens":9000000000000000000,"n":9000000000000000000}"#, Some(u64::MAX));
    check("{}", None);
}

#[test]
fn answers_are_counted_over_choices_and_prompts() {
    let check = |path: &str, body: &str, answers: u32, max_output: u64| {
        let (call, _) = found(path, body);
        assert_eq!((call.answers, call.max_output), (answers, Some(max_output)), "{path} {body}");
    };
    check(CHAT, r#"{"messages":[],"max_tokens":5}"#, 1, 5);
    check(CHAT, r#"{"messages":["a","b"],"max_tokens":5,"n":3}"#, 3, 15);
    check(CHAT, r#"{"messages":[],"max_tokens":5,"n":0}"#, 1, 5);
    check("/v1/completions", r#"{"prompt":"a","max_tokens":5,"n":2}"#, 2, 10);
    check("/v1/completions", r#"{"prompt":["a","b","c"],"max_tokens":5,"n":2}"#, 6, 30);
    check("/v1/completions", r#"{"prompt":[1,2,3],"max_tokens":5}"#, 1, 5);
    check("/v1/completions", r#"{"prompt":[[1,2],[3]],"max_tokens":5}"#, 2, 10);
    check("/v1/completions", r#"{"prompt":[],"max_tokens":5}"#, 1, 5);
    check("/v1/completions", r#"{"prompt":["a","b"],"input":"x","messages":"x","max_tokens":5}"#, 2, 10);
    check(CHAT, r#"{"max_tokens":2,"n":5000000000}"#, Call::MAX_ANSWERS, 10_000_000_000);
    for path in ["/v1/responses", "/v1/messages", "/api/chat", "/generate", "/unheard/of"] {
        check(path, r#"{"prompt":["a","b"],"max_tokens":2,"n":5}"#, 1, 10);
    }
}

#[test]
fn the_prompt_is_estimated_wherever_it_stands() {
    let check = |path, body: &str, expected| assert_eq!(found(path, body).0.prompt_estimate, expected, "{body}");
    check("/v1/completions", r#"{"prompt":"eight by"}"#, 2);
    check("/v1/embeddings", r#"{"input":["four","four"]}"#, 2);
    check("/v1/completions", r#"{"prompt":[1,2,3]}"#, 3);
    check("/v1/completions", r#"{"x":"no prompt at all"}"#, 0);
}

#[test]
fn usage_is_asked_for_without_touching_another_byte() {
    let check = |body: &str, expected: &str| assert_eq!(with_usage(body), expected);
    check(r#"{"stream":true}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#);
    check(r#" { "stream":true}"#, r#" {"stream_options":{"include_usage":true}, "stream":true}"#);
    check(r#"{"stream":true,"stream_options":{}}"#, r#"{"stream":true,"stream_options":{"include_usage":true}}"#);
    check(r#"{"stream":true,"stream_options": { } }"#, r#"{"stream":true,"stream_options": {"include_usage":true } }"#);
    check(
        r#"{"stream_options":{"x":1},"stream":true}"#,
        r#"{"stream_options":{"include_usage":true,"x":1},"stream":true}"#,
    );
    check(r#"{"stream":true,"stream_options":null}"#, r#"{"stream":true,"stream_options":{"include_usage":true}}"#);
    check(
        r#"{"stream":true,"stream_options":{"include_usage":null}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
    );
}

#[test]
fn usage_is_not_asked_for_where_the_client_decided() {
    let check = |body: &str, asked: bool| {
        let (call, edits) = found(CHAT, body);
        assert_eq!((call.asked_usage, edits.include_usage), (asked, None), "{body}");
    };
    check(r#"{"stream":true,"stream_options":{"include_usage":true}}"#, true);
    check(r#"{"stream":true,"stream_options":{"include_usage":false}}"#, false);
    check(r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#, false);
    check(r#"{"stream":true,"stream_options":{"continuous_usage_stats":true,"include_usage":true}}"#, true);
    check(r#"{"stream":true,"stream_options":"yes"}"#, false);
    check(r#"{"stream":false}"#, false);
    check("{}", false);
}

#[test]
fn usage_is_not_asked_for_where_the_api_does_not_know_it() {
    for path in ["/v1/embeddings", "/v1/responses", "/v1/messages", "/api/chat", "/v1/anything"] {
        assert_eq!(found(path, r#"{"stream":true}"#).1.include_usage, None, "{path}");
    }
}

#[test]
fn a_key_that_decides_is_refused_when_it_is_not_clear() {
    let check = |body: &str, code: &str, param: Option<&str>| {
        let error = refused(CHAT, body);
        assert_eq!((error.code(), error.param()), (code, param), "{body}");
        assert_eq!(error.status(), 400, "{body}");
    };
    check(r#"{"model":"a","model":"b"}"#, "duplicate_parameter", Some("model"));
    check(r#"{"model":"a","mod\u0065l":"b"}"#, "duplicate_parameter", Some("model"));
    check(r#"{"stream":true,"stream":null}"#, "duplicate_parameter", Some("stream"));
    check(r#"{"stream_options":{},"stream_options":{}}"#, "duplicate_parameter", Some("stream_options"));
    check(r#"{"model":"a","MODEL":"b"}"#, "unknown_parameter", Some("model"));
    check(r#"{"ſtream":true}"#, "unknown_parameter", Some("stream"));
    check(r#"{"model":7}"#, "invalid_type", Some("model"));
    check(r#"{"stream":"true"}"#, "invalid_type", Some("stream"));
    check(r#"{"stream":1}"#, "invalid_type", Some("stream"));
    check("[]", "not_an_object", None);
    check("7", "not_an_object", None);
    check("", "invalid_json", None);
    check("{", "invalid_json", None);
    check(r#"{"model":"a"} x"#, "invalid_json", None);
}

#[test]
fn invalid_json_is_refused_with_its_place() {
    let message = refused(CHAT, "{\"model\":\"a\",\n \"stream\": tru }").to_string();
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn a_body_of_an_unknown_path_may_be_anything_but_unclear() {
    for body in ["", "{", "[1]", "hello", r#"{"model":7,"stream":"x","Model":1}"#] {
        assert_eq!(found("/v1/anything", body).1, Edits::default(), "{body}");
    }
    assert_eq!(found("/v1/anything", r#"{"model":"a"}"#).0.model.as_deref(), Some("a"));
    for body in
        [r#"{"model":"a","model":"b"}"#, r#"{"model":"a","Model":"b"}"#, r#"{"MODEL":"b","Stream":true,"model":"a"}"#]
    {
        assert_eq!(refused("/v1/anything", body).code(), "duplicate_parameter", "{body}");
    }
    assert_eq!(found("/v1/anything", r#"{"model":"a","Stream":"x"}"#).0.model.as_deref(), Some("a"));
    assert_eq!(found("/v1/anything", r#"{"Model":"a"}"#).0.model, None);
}

#[test]
fn deep_nesting_is_no_danger() {
    let body = format!(r#"{{"x":{}{},"model":"a"}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(found(CHAT, &body).0.model.as_deref(), Some("a"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i16>().prop_map(|number| json!(f64::from(number) / 8.0)),
        ".{0,12}".prop_map(Value::from),
        Just(json!("\"stream_options\":{")),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_{}\"]{0,6}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn any_request() -> impl Strategy<Value = Value> {
    let options = prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        Just(Some(json!({}))),
        Just(Some(json!({"include_usage": null}))),
        any_json().prop_map(|value| Some(json!({"a": value, "z": 1}))),
    ];
    let rest = prop::collection::btree_map("[a-z_]{1,8}x", any_json(), 0..6);
    (rest, options, ".{0,10}").prop_map(|(rest, options, model)| {
        let mut request = json!(rest);
        request["model"] = model.into();
        request["stream"] = true.into();
        if let Some(options) = options {
            request["stream_options"] = options;
        }
        request
    })
}

proptest! {
    #[test]
    fn an_edited_request_differs_in_the_edited_members_only(
        request in any_request(),
        pretty in any::<bool>(),
        name in ".{0,10}",
    ) {
        let text = if pretty { serde_json::to_string_pretty(&request) } else { serde_json::to_string(&request) }.unwrap();
        let body = Bytes::from(text);
        let (call, edits) = find(Endpoint::of(CHAT), &body).unwrap();
        prop_assert_eq!(call.model.as_deref(), request["model"].as_str());

        let sent = edits.apply(&body, Some(&name), true);
        let mut expected = request.clone();
        expected["model"] = name.clone().into();
        if expected["stream_options"].is_null() {
            expected["stream_options"] = json!({});
        }
        expected["stream_options"]["include_usage"] = true.into();
        prop_assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), expected);

        // All other bytes: what is not in one of the two ranges is there as it was.
        let usage = edits.include_usage.clone().unwrap();
        let sent = edits.apply(&body, None, true);
        prop_assert_eq!(&sent[..usage.at.start], &body[..usage.at.start]);
        prop_assert_eq!(&sent[usage.at.start + usage.with.len()..], &body[usage.at.end..]);
        prop_assert!(usage.at.is_empty() || &body[usage.at.clone()] == b"null");
        prop_assert_eq!(edits.apply(&body, None, false), body);
    }

    #[test]
    fn no_body_makes_the_reader_stumble(body in prop::collection::vec(any::<u8>(), 0..64)) {
        for path in [CHAT, "/api/chat", "/v1/anything"] {
            let _ = find(Endpoint::of(path), &body);
        }
    }
}

#[test]
fn a_name_that_no_model_has_is_refused() {
    let body = |length: usize| format!(r#"{{"model":"{}"}}"#, "m".repeat(length));
    for path in [CHAT, "/v1/anything"] {
        assert_eq!(found(path, &body(512)).0.model.map(|model| model.len()), Some(512));
        assert_eq!(refused(path, &body(513)).param(), Some("model"));
    }
}

#[test]
fn whom_a_request_is_for_is_found_where_clients_say_it() {
    let check = |path, body: &str, expected| assert_eq!(found(path, body).0.user.as_deref(), expected, "{path} {body}");
    check(CHAT, r#"{"user":"alice"}"#, Some("alice"));
    check(CHAT, r#"{"user":"al\u0069ce"}"#, Some("alice"));
    check(CHAT, r#"{"safety_identifier":"s"}"#, Some("s"));
    check(CHAT, r#"{"safety_identifier":"s","user":"alice"}"#, Some("alice"));
    check("/v1/responses", r#"{"user":"alice","prompt_cache_key":"talk-7"}"#, Some("talk-7"));
    check("/v1/responses", r#"{"user":"alice","prompt_cache_key":null}"#, Some("alice"));
    check("/v1/messages", r#"{"metadata":{"user_id":"u_session_7"}}"#, Some("u_session_7"));
    check(CHAT, r#"{"metadata":{"user_id":"a note of the client's"}}"#, None);
    for body in [r#"{"user":""}"#, r#"{"user":7}"#, r#"{"user":["a"]}"#, r#"{"metadata":"x"}"#, "{}"] {
        check("/v1/messages", body, None);
    }
    let long = found(CHAT, &format!(r#"{{"user":"{}"}}"#, "é".repeat(300))).0.user;
    assert_eq!(long.as_deref(), Some(&*"é".repeat(256)), "not more than 512 bytes, and whole characters");
}

#[test]
fn tools_are_needed_where_there_are_some() {
    let check = |path, body: &str, expected| assert_eq!(found(path, body).0.needs.tools, expected, "{path} {body}");
    for path in [CHAT, "/v1/responses", "/v1/messages", "/api/chat"] {
        check(path, r#"{"tools":[{"name":"f"}]}"#, true);
        check(path, r#"{"tools": [ ]}"#, false);
        check(path, r#"{"tools":null}"#, false);
        check(path, r#"{"messages":[{"tools":[{}]}]}"#, false);
    }
    check(CHAT, r#"{"functions":[{"name":"f"}]}"#, true);
}
