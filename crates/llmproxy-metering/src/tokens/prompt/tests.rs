//! Requests of every kind, counted with a tokenizer whose every character is a token: what is expected is the length of
//! the text that the model is given.

use std::sync::Arc;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::tokens::trained;

/// ChatML as Qwen has it, with calls of tools.
const CHAT: &str = "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '</tools>' }}{%- endif %}\n\
    {%- for message in messages %}\n\
    {{- '<' + message.role + '>' + message.content }}\n\
    {%- for call in message.tool_calls or [] %}{{- call.function.name + call.function.arguments | tojson }}{%- endfor %}\n\
    {{- '</>' }}\n\
    {%- endfor %}\n\
    {%- if add_generation_prompt %}{{- '<assistant>' }}{%- if enable_thinking is false %}{{- '<no>' }}{%- endif %}{%- endif %}";

/// Each character is a token; `<s>` stands before a text.
fn letters(templates: &[(&str, &str)]) -> Arc<Tokenizer> {
    let vocabulary: serde_json::Map<_, _> =
        [("<s>", 0), ("<unk>", 1)].map(|(token, id)| (token.to_owned(), id.into())).into_iter().collect();
    let post = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "post_processor": post,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []},
    });
    Tokenizer::of(&json.to_string(), templates, &[("bos_token", "<s>")])
}

fn check(path: &str, body: &str, expected: &str, exact: bool) {
    check_with(&letters(&[("default", CHAT)]), path, body, expected, exact);
}

fn check_with(tokenizer: &Tokenizer, path: &str, body: &str, expected: &str, exact: bool) {
    let tokens = expected.chars().count() as u64;
    let counted = tokenizer.count_prompt(Endpoint::of(path), body.as_bytes());
    assert_eq!(counted, Some(Counted { tokens, exact }), "{path} {body}");
}

#[test]
fn a_chat_goes_through_the_template() {
    let check = |body, expected, exact| check("/v1/chat/completions", body, expected, exact);
    check(r#"{"messages":[{"role":"user","content":"Hi"}]}"#, "<user>Hi</><assistant>", true);
    check(
        r#"{"messages":[{"role":"system","content":"S"},{"content":"Hi","role":"user"},{"role":"assistant","content":null}]}"#,
        "<system>S</><user>Hi</><assistant></><assistant>",
        true,
    );
    check(r#"{"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":false}"#, "<user>Hi</>", true);
    check(
        r#"{"messages":[{"role":"user","content":"Hi"}],"add_special_tokens":true}"#,
        "~<user>Hi</><assistant>",
        true,
    );
    check(
        r#"{"messages":[{"role":"user","content":"Hi"}],"chat_template_kwargs":{"enable_thinking":false}}"#,
        "<user>Hi</><assistant><no>",
        true,
    );
    check(r#"{"messages":[{"role":"user","content":"Hi"}],"chat_template":"x"}"#, "<user>Hi</><assistant>", false);
    check(r#"{"messages":[]}"#, "<assistant>", true);
}

#[test]
fn parts_of_a_message_are_joined_and_pictures_can_not_be_counted() {
    let check = |body, expected, exact| check("/v1/chat/completions", body, expected, exact);
    check(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"One"},{"type":"text","text":"Two"}]}]}"#,
        "<user>One\nTwo</><assistant>",
        true,
    );
    check(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"One"},{"type":"image_url","image_url":{"url":"data:x"}}]}]}"#,
        "<user>One</><assistant>",
        false,
    );
}

#[test]
fn a_template_that_takes_parts_is_given_parts() {
    let only_parts = "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{{ '[' + part.text + ']' }}{% endfor %};{% endfor %}";
    let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ '[' + part.text + ']' }}{% endfor %}{% endif %}{% endfor %}";
    let string = r#"{"messages":[{"role":"user","content":"Hi"}]}"#;
    let list = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"A"},{"type":"text","text":"B"}]}]}"#;
    let check = |template, body, expected| {
        check_with(&letters(&[("default", template)]), "/v1/chat/completions", body, expected, true);
    };
    check(only_parts, string, "user:[Hi];");
    check(only_parts, list, "user:[A][B];");
    check(both, string, "Hi");
    check(both, list, "[A][B]");
}

#[test]
fn tools_and_their_calls_are_written_as_python_writes_json() {
    let body = r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"b\":1,\"a\":\"é\"}"}}]}],
        "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}"#;
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}"#;
    let expected = format!(r#"<tools>{tool}</tools><assistant>f{{"b": 1, "a": "é"}}</><assistant>"#);
    check("/v1/chat/completions", body, &expected, true);
    let of_tools = letters(&[("default", "without"), ("tool_use", "with tools")]);
    check_with(&of_tools, "/v1/chat/completions", body, "with tools", true);
    check_with(&of_tools, "/v1/chat/completions", r#"{"messages":[]}"#, "without", true);
}

#[test]
fn a_message_that_is_gone_on_with_is_not_closed() {
    let check = |last: &str, expected| {
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"It is"}},{{"role":"assistant","content":{last}}}],"continue_final_message":true,"add_generation_prompt":false}}"#
        );
        check("/v1/chat/completions", &body, expected, true);
    };
    check(r#""It is""#, "<user>It is</><assistant>It is");
    check(r#""It is ""#, "<user>It is</><assistant>It is ");
    let stripping = letters(&[("default", "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}")]);
    let body = r#"{"messages":[{"role":"assistant","content":"  It is "}],"continue_final_message":true}"#;
    check_with(&stripping, "/v1/chat/completions", body, "<It is", true);
}

#[test]
fn a_template_that_fails_or_is_not_there_leaves_the_text() {
    let refuses = "{{ raise_exception('no') }}";
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    let nested = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let body =
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"user","content":[{"type":"text","text":"there"}]}]}"#;
    // What does not come to an end is estimated by the request's size.
    let counted = letters(&[("default", endless)]).count_prompt(Endpoint::of("/v1/chat/completions"), body.as_bytes());
    assert_eq!(counted, None);
    for template in [refuses, nested] {
        check_with(&letters(&[("default", template)]), "/v1/chat/completions", body, "Hi\nthere\n", false);
    }
    check_with(&letters(&[]), "/v1/chat/completions", body, "Hi\nthere\n", false);
}

#[test]
fn what_the_template_knows_of_the_model_is_there() {
    let template = "{{ bos_token }}{% if eos_token is defined %}{{ eos_token }}{% endif %}{{ messages[0]['content'] }}{{ tools is none }}";
    check_with(
        &letters(&[("default", template)]),
        "/v1/chat/completions",
        r#"{"messages":[{"role":"user","content":"Hi"}]}"#,
        "<s>HiTrue",
        true,
    );
    let date = letters(&[("default", "{{ strftime_now('%Y-%m-%d') }}")]);
    check_with(&date, "/v1/chat/completions", r#"{"messages":[]}"#, "2026-01-01", true);
}

#[test]
fn texts_have_what_the_tokenizer_puts_around_them() {
    check("/v1/completions", r#"{"prompt":"Hi"}"#, "~Hi", true);
    check("/v1/completions", r#"{"prompt":["Hi","you"]}"#, "~Hi~you", true);
    check("/v1/completions", r#"{"prompt":[1,2,3]}"#, "123", true);
    check("/v1/completions", r#"{"prompt":[[1,2],[3]]}"#, "123", true);
    check("/v1/completions", r#"{"prompt":"Hi","add_special_tokens":false}"#, "Hi", true);
    check("/v1/completions", r#"{"prompt":"Hi","suffix":"x"}"#, "~Hi", false);
    check("/v1/completions", r#"{"prompt":"Hi","suffix":null}"#, "~Hi", true);
    check("/v1/embeddings", r#"{"input":["Hi","you"]}"#, "~Hi~you", true);
    check("/generate", r#"{"inputs":"Hi","parameters":{"max_new_tokens":2}}"#, "~Hi", true);
    check("/generate_stream", r#"{"inputs":"Hi","parameters":{"truncate":2}}"#, "~Hi", false);
    check("/completion", r#"{"prompt":[12,"Hi",13]}"#, "1Hi1", true);
    check("/completion", r#"{"prompt":["Hi",13]}"#, "~Hi1", true);
}

#[test]
fn ollama_has_templates_of_its_own_unless_it_is_raw() {
    check("/api/chat", r#"{"messages":[{"role":"user","content":"Hi"}]}"#, "<user>Hi</><assistant>", false);
    check("/api/generate", r#"{"prompt":"Hi","raw":true}"#, "~Hi", true);
    check("/api/generate", r#"{"prompt":"Hi","raw":true,"context":[1]}"#, "~Hi", false);
    check("/api/generate", r#"{"prompt":"Hi","system":"S"}"#, "<system>S</><user>Hi</><assistant>", false);
}

#[test]
fn anthropics_messages_are_turned_into_a_chat() {
    let check = |body, expected, exact| check("/v1/messages", body, expected, exact);
    check(
        r#"{"system":"S","messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":[{"type":"text","text":"Yes"}]}]}"#,
        "<system>S</><user>Hi</><assistant>Yes</><assistant>",
        true,
    );
    check(
        r#"{"system":[{"type":"text","text":"A"},{"type":"text","text":"B"}],"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}"#,
        "<system>AB</><user>Hi</><assistant>",
        true,
    );
    check(
        r#"{"messages":[{"role":"assistant","content":[{"type":"text","text":"ok"},{"type":"tool_use","id":"1","name":"f","input":{"a":1}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"42"}]}],
            "tools":[{"name":"f","description":"d","input_schema":{"type":"object"}}]}"#,
        r#"<tools>{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}</tools><assistant>okf{"a": 1}</><tool>42</><assistant>"#,
        false,
    );
    check(
        r#"{"messages":[{"role":"user","content":[{"type":"image","source":{}},{"type":"text","text":"Hi"}]}]}"#,
        "<user>Hi</><assistant>",
        false,
    );
}

#[test]
fn responses_are_turned_into_a_chat() {
    let check = |body, expected, exact| check("/v1/responses", body, expected, exact);
    check(r#"{"instructions":"S","input":"Hi"}"#, "<system>S</><user>Hi</><assistant>", true);
    check(
        r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]},{"type":"function_call","call_id":"1","name":"f","arguments":"{\"a\":1}"},{"type":"function_call_output","call_id":"1","output":"42"}]}"#,
        r#"<user>Hi</><assistant>f{"a": 1}</><tool>42</><assistant>"#,
        true,
    );
    check(r#"{"input":"Hi","previous_response_id":"r"}"#, "<user>Hi</><assistant>", false);
    check(
        r#"{"input":"Hi","tools":[{"type":"function","name":"f","parameters":{}}]}"#,
        r#"<tools>{"type": "function", "function": {"name": "f", "parameters": {}}}</tools><user>Hi</><assistant>"#,
        true,
    );
    check(
        r#"{"input":"Hi","tools":[{"type":"web_search"}]}"#,
        "<tools>{\"type\": \"function\", \"function\": {}}</tools><user>Hi</><assistant>",
        false,
    );
}

#[test]
fn what_a_tool_said_is_told_by_the_call() {
    let template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}:{{ c.function.name }};{% endfor %}{{ m.tool_call_id }}{% endfor %}";
    let tokenizer = letters(&[("default", template)]);
    let responses = r#"{"input":[{"type":"function_call","call_id":"c1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c1","output":"42"}]}"#;
    check_with(&tokenizer, "/v1/responses", responses, "c1:f;c1", true);
    let anthropic = r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"c1","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"42"}]}]}"#;
    check_with(&tokenizer, "/v1/messages", anthropic, "c1:f;c1", false);
}

#[test]
fn what_has_no_prompt_is_not_counted() {
    let tokenizer = letters(&[("default", CHAT)]);
    let check = |path, body: &str| {
        assert_eq!(tokenizer.count_prompt(Endpoint::of(path), body.as_bytes()), None, "{path} {body}");
    };
    for path in
        ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/api/generate", "/generate"]
    {
        for body in ["", "{", "null", "[]", "{}", r#"{"messages":7,"prompt":7,"input":null,"inputs":{}}"#] {
            // What a conversation of nothing is to a template is still something.
            if !(path.ends_with("completions") || path.ends_with("messages")) || !body.contains("messages") {
                check(path, body);
            }
        }
    }
    check("/v1/models", "{}");
    check("/v1/chat/completions", &"[".repeat(100_000));
}

#[test]
fn a_conversation_is_no_longer_than_memory_allows_and_tokens_are_as_many_as_there_are() {
    let tokenizer = letters(&[("default", CHAT)]);
    let count = |path, body: &str| tokenizer.count_prompt(Endpoint::of(path), body.as_bytes());
    let many = |entry: &str, count: usize| vec![entry; count].join(",");
    let chat = |entries: &str| format!(r#"{{"messages":[{{"role":"user","content":"Hi"}}],"more":[{entries}]}}"#);
    assert!(count("/v1/chat/completions", &chat(&many("{}", 60_000))).is_some_and(|counted| counted.exact));
    assert_eq!(count("/v1/chat/completions", &chat(&many("{}", 70_000))), None);
    assert_eq!(count("/v1/chat/completions", &chat(&format!("\"{}\"", "x".repeat(MAX_CHAT)))), None);
    let completion = format!(r#"{{"prompt":[{}]}}"#, many("1", 1_000_000));
    assert_eq!(count("/v1/completions", &completion), Some(Counted { tokens: 1_000_000, exact: true }));
    let generate = format!(r#"{{"prompt":"Hi","raw":true,"context":[{}]}}"#, many("1", 100_000));
    assert_eq!(count("/api/generate", &generate), Some(Counted { tokens: 3, exact: false }));
    // Values in a string are values, too.
    let call = |arguments: &str| {
        let call = serde_json::json!({"function": {"name": "f", "arguments": arguments}});
        serde_json::json!({"messages": [{"role": "a", "content": "", "tool_calls": [call]}]}).to_string()
    };
    let arguments = |count| format!("[{}]", many("0", count));
    assert!(count("/v1/chat/completions", &call(&arguments(60_000))).is_some_and(|counted| counted.exact));
    assert!(count("/v1/chat/completions", &call(&arguments(70_000))).is_some_and(|counted| !counted.exact));
}

#[test]
fn a_prompt_longer_than_a_window_is_counted_exactly() {
    let (_, tokenizer) = &trained::ALL[0];
    let text = include_str!("../text.rs").repeat(3);
    let body = serde_json::json!({"prompt": text}).to_string();
    let whole = tokenizer.offsets(&text).unwrap().len() as u64 + 1;
    let counted = tokenizer.count_prompt(Endpoint::of("/v1/completions"), body.as_bytes());
    assert_eq!(counted, Some(Counted { tokens: whole, exact: true }));
}

/// JSON with the names that matter in any place.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    const NAMES: [&str; 20] = [
        "messages",
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "tools",
        "prompt",
        "input",
        "inputs",
        "system",
        "raw",
        "instructions",
        "output",
        "chat_template_kwargs",
        "continue_final_message",
        "parameters",
    ];
    const TEXTS: [&str; 10] =
        ["user", "text", "message", "function_call", "tool_use", "tool_result", "{\"a\":[1]}", "{", "", "é\u{0}"];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        select(&TEXTS[..]).prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        let member = (select(&NAMES[..]).prop_map(String::from), inner.clone());
        let object = vec(member, 0..6).prop_map(|members| serde_json::Value::Object(members.into_iter().collect()));
        prop_oneof![vec(inner, 0..5).prop_map(serde_json::Value::Array), object]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_that_makes_no_sense_does_no_harm(
        members in vec((select(&["messages", "prompt", "input", "inputs", "system", "tools", "instructions", "continue_final_message"][..]), any_json()), 1..5),
        path in select(&["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/api/chat", "/api/generate", "/completion"][..]),
    ) {
        thread_local!(static TOKENIZER: Arc<Tokenizer> = letters(&[("default", CHAT)]));
        let body: serde_json::Map<_, _> = members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let body = serde_json::Value::Object(body).to_string();
        // Whatever it is counted as: it is not a panic, and it is not more than all of it could be.
        let counted = TOKENIZER.with(|tokenizer| tokenizer.count_prompt(Endpoint::of(path), body.as_bytes()));
        let most = 40 * body.len() as u64 + 100;
        prop_assert!(counted.is_none_or(|counted| counted.tokens <= most), "{counted:?} of {body}");
    }
}
