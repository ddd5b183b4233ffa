//! The text in the events of a stream, and which text of several each piece belongs to.

use std::borrow::Cow;

use serde::Deserialize;

use super::Dialect;

/// A text among those of an answer: a choice's content, what it thinks, the arguments of a call. The same in all events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Text {
    /// Which choice, prompt or block.
    pub(crate) choice: u32,
    /// Which of its texts.
    pub(crate) field: Field,
    /// Which part or call, where there are several.
    pub(crate) part: u32,
}

/// What a text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Content,
    Reasoning,
    Name,
    Arguments,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct OpenAi<'a> {
    #[serde(default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Choice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct ToolCall<'a> {
    #[serde(default)]
    index: u32,
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    arguments: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Responses<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    output_index: u32,
    #[serde(default)]
    content_index: u32,
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Anthropic<'a> {
    #[serde(default)]
    index: u32,
    delta: Option<Block<'a>>,
    content_block: Option<Block<'a>>,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
    #[serde(borrow)]
    partial_json: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Ollama<'a> {
    #[serde(borrow)]
    response: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
    message: Option<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Native<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    token: Option<Token<'a>>,
}

#[derive(Deserialize)]
struct Token<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

/// Hands each piece of text in an event on. What is no event of the dialect has none.
pub(super) fn of_event(dialect: Dialect, data: &[u8], mut on: impl FnMut(Text, &str)) {
    let mut piece = |choice, field, part, text: Option<Cow<'_, str>>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            on(Text { choice, field, part }, &text);
        }
    };
    match dialect {
        Dialect::Chat | Dialect::Completions | Dialect::Reading => {
            let Ok(OpenAi { choices }) = serde_json::from_slice(data) else { return };
            for Choice { index, text, delta } in choices {
                piece(index, Field::Content, 0, text);
                let Some(delta) = delta else { continue };
                // Some servers write the same under both names.
                piece(index, Field::Reasoning, 0, delta.reasoning_content.or(delta.reasoning));
                piece(index, Field::Content, 0, delta.content);
                piece(index, Field::Content, 1, delta.refusal);
                for ToolCall { index: call, function } in delta.tool_calls.into_iter().flatten() {
                    let Some(function) = function else { continue };
                    piece(index, Field::Name, call, function.name);
                    piece(index, Field::Arguments, call, function.arguments);
                }
            }
        }
        // Words of a transcription.
        Dialect::Sound | Dialect::Responses => {
            let Ok(event) = serde_json::from_slice::<Responses<'_>>(data) else { return };
            let field = match event.kind.as_deref() {
                Some(kind) if kind.contains("reasoning") => Field::Reasoning,
                Some(kind) if kind.contains("arguments") => Field::Arguments,
                _ => Field::Content,
            };
            piece(event.output_index, field, event.content_index, event.delta);
        }
        Dialect::Anthropic => {
            let Ok(event) = serde_json::from_slice::<Anthropic<'_>>(data) else { return };
            for block in [event.content_block, event.delta].into_iter().flatten() {
                piece(event.index, Field::Content, 0, block.text);
                piece(event.index, Field::Reasoning, 0, block.thinking);
                piece(event.index, Field::Name, 0, block.name);
                piece(event.index, Field::Arguments, 0, block.partial_json);
            }
        }
        Dialect::Ollama => {
            let Ok(line) = serde_json::from_slice::<Ollama<'_>>(data) else { return };
            piece(0, Field::Reasoning, 0, line.thinking);
            piece(0, Field::Content, 0, line.response);
            if let Some(message) = line.message {
                piece(0, Field::Reasoning, 0, message.thinking);
                piece(0, Field::Content, 0, message.content);
            }
        }
        Dialect::Tgi | Dialect::Llama => {
            let Ok(event) = serde_json::from_slice::<Native<'_>>(data) else { return };
            piece(event.index, Field::Content, 0, event.content);
            // TGI counts its tokens by the index.
            piece(0, Field::Content, 0, event.token.and_then(|token| token.text));
        }
    }
}

/// The keys under which a plain answer has its text.
pub(super) fn keys(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Chat | Dialect::Completions => &["content", "text", "reasoning_content", "arguments", "refusal"],
        // It repeats the tools that it was given.
        Dialect::Responses => &["text", "arguments"],
        Dialect::Anthropic => &["text", "thinking"],
        Dialect::Ollama => &["response", "content", "thinking"],
        Dialect::Tgi => &["generated_text", "text"],
        Dialect::Llama => &["content"],
        Dialect::Reading | Dialect::Sound => &[],
    }
}

/// The keys under which a plain answer has what a tool is called with: a text, or an object.
pub(super) fn calls(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Chat | Dialect::Completions | Dialect::Responses | Dialect::Ollama => &["arguments"],
        Dialect::Anthropic => &["input"],
        Dialect::Tgi | Dialect::Llama | Dialect::Reading | Dialect::Sound => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dialect: Dialect, event: &str, expected: &[(u32, Field, u32, &str)]) {
        let mut found = Vec::new();
        of_event(dialect, event.as_bytes(), |text, piece| {
            found.push((text.choice, text.field, text.part, piece.to_owned()));
        });
        let expected: Vec<_> =
            expected.iter().map(|(choice, field, part, text)| (*choice, *field, *part, (*text).to_owned())).collect();
        assert_eq!(found, expected, "{event}");
    }

    #[test]
    fn pieces_are_told_apart_by_what_they_belong_to() {
        use Field::{Arguments, Content, Name, Reasoning};
        let openai = |event, expected| check(Dialect::Chat, event, expected);
        openai(r#"{"choices":[{"index":1,"delta":{"content":"a\n"}}]}"#, &[(1, Content, 0, "a\n")]);
        openai(r#"{"choices":[{"delta":{"role":"assistant","content":""},"index":0}]}"#, &[]);
        openai(
            r#"{"choices":[{"delta":{"content":"b"},"index":2},{"index":0,"text":"c"}]}"#,
            &[(2, Content, 0, "b"), (0, Content, 0, "c")],
        );
        openai(
            r#"{"choices":[{"delta":{"reasoning":"r","reasoning_content":"r","content":null}}]}"#,
            &[(0, Reasoning, 0, "r")],
        );
        openai(
            r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"x","function":{"name":"f","arguments":"{"}}]}}]}"#,
            &[(0, Name, 1, "f"), (0, Arguments, 1, "{")],
        );
        openai(r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, &[]);
        check(
            Dialect::Responses,
            r#"{"type":"response.output_text.delta","output_index":1,"content_index":2,"delta":"a"}"#,
            &[(1, Content, 2, "a")],
        );
        check(
            Dialect::Responses,
            r#"{"type":"response.function_call_arguments.delta","delta":"{"}"#,
            &[(0, Arguments, 0, "{")],
        );
        check(Dialect::Responses, r#"{"type":"response.output_text.done","text":"all of it"}"#, &[]);
        let anthropic = |event, expected| check(Dialect::Anthropic, event, expected);
        anthropic(
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"a"}}"#,
            &[(1, Content, 0, "a")],
        );
        anthropic(
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","name":"f","input":{}}}"#,
            &[(2, Name, 0, "f")],
        );
        anthropic(
            r#"{"type":"content_block_delta","index":2,"delta":{"partial_json":"{"}}"#,
            &[(2, Arguments, 0, "{")],
        );
        check(
            Dialect::Ollama,
            r#"{"message":{"role":"assistant","content":"a","thinking":"t"},"done":false}"#,
            &[(0, Reasoning, 0, "t"), (0, Content, 0, "a")],
        );
        check(Dialect::Ollama, r#"{"response":"a","done":false}"#, &[(0, Content, 0, "a")]);
        check(
            Dialect::Tgi,
            r#"{"index":3,"token":{"id":1,"text":" a","special":false},"generated_text":null}"#,
            &[(0, Content, 0, " a")],
        );
        check(Dialect::Llama, r#"{"index":0,"content":"a","tokens":[1],"stop":false}"#, &[(0, Content, 0, "a")]);
    }

    #[test]
    fn what_is_no_event_has_no_text() {
        for dialect in [Dialect::Chat, Dialect::Responses, Dialect::Anthropic, Dialect::Ollama, Dialect::Tgi] {
            for event in ["", "[DONE]", "null", "[]", "{", r#"{"choices":7}"#, r#"{"delta":3}"#, r#"{"message":"x"}"#] {
                check(dialect, event, &[]);
            }
        }
    }
}
