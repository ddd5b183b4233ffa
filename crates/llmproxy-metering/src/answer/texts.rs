//! The text in the events of a stream, and which text of several each piece belongs to.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Dialect,
    places::Places,
    strings::{Piece, Strings},
};

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
    index: Option<u32>,
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
    /// What a call was before there could be several.
    function_call: Option<Function<'a>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct ToolCall<'a> {
    index: Option<u32>,
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    /// JSON in a text, or as it is.
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Responses<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    output_index: Option<u32>,
    content_index: Option<u32>,
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Anthropic<'a> {
    index: Option<u32>,
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
#[serde(bound(deserialize = "'de: 'a"))]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Native<'a> {
    index: Option<u32>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    token: Option<Token<'a>>,
}

#[derive(Deserialize)]
struct Token<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

/// Hands each piece of text in an event on, of which a scan has found so many bytes. Says whether that is all of it: what
/// is not written as the dialect has it is found by its keys, or not at all.
pub(super) fn of_event(dialect: Dialect, data: &[u8], found: u64, mut on: impl FnMut(Text, &str)) -> bool {
    let mut heard = 0;
    let parsed = read(dialect, data, |text, piece| {
        heard += piece.len() as u64;
        on(text, piece);
    });
    if found > 0 && heard == 0 {
        let text = Text { choice: 0, field: Field::Content, part: 0 };
        Strings::new(Places::of_event(dialect)).feed(data, |piece| {
            if let Piece::Text(piece) = piece {
                on(text, piece);
            }
        });
        return false;
    }
    // Beside a token TGI lists others that it might have been.
    parsed.is_some() && (dialect == Dialect::Tgi || heard >= found || heard >= found.saturating_sub(spared(data)))
}

/// By how many bytes the scan may have taken the text in `data` for too long: it takes an escaped character for three bytes,
/// and may stand before one, or half a pair of four.
fn spared(data: &[u8]) -> u64 {
    2 * memchr::memmem::find_iter(data, b"\\u").count() as u64
}

/// Hands on what stands where it should; `None` where `data` is not what it should be.
fn read(dialect: Dialect, data: &[u8], mut on: impl FnMut(Text, &str)) -> Option<()> {
    let mut piece = |choice: Option<u32>, field, part, text: Option<Cow<'_, str>>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            on(Text { choice: choice.unwrap_or(0), field, part }, &text);
        }
    };
    match dialect {
        Dialect::Chat | Dialect::Completions | Dialect::Reading => {
            for Choice { index, text, delta } in serde_json::from_slice::<OpenAi<'_>>(data).ok()?.choices {
                piece(index, Field::Content, 0, text);
                let Some(delta) = delta else { continue };
                // Some servers write the same under both names.
                let reasoning = delta.reasoning_content.filter(|text| !text.is_empty()).or(delta.reasoning);
                piece(index, Field::Reasoning, 0, reasoning);
                piece(index, Field::Content, 0, delta.content);
                piece(index, Field::Content, 1, delta.refusal);
                let calls = numbered(delta.tool_calls).chain(delta.function_call.map(|function| (0, function)));
                for (call, function) in calls {
                    piece(index, Field::Name, call, function.name);
                    piece(index, Field::Arguments, call, function.arguments.map(written));
                }
            }
        }
        // Words of a transcription.
        Dialect::Sound | Dialect::Responses => {
            let event = serde_json::from_slice::<Responses<'_>>(data).ok()?;
            let field = match event.kind.as_deref() {
                Some(kind) if kind.contains("reasoning") => Field::Reasoning,
                // A function's arguments, a tool's input, the code for an interpreter.
                Some(kind) if kind.contains("_call") => Field::Arguments,
                _ => Field::Content,
            };
            piece(event.output_index, field, event.content_index.unwrap_or(0), event.delta);
        }
        Dialect::Anthropic => {
            let event = serde_json::from_slice::<Anthropic<'_>>(data).ok()?;
            for block in [event.content_block, event.delta].into_iter().flatten() {
                piece(event.index, Field::Content, 0, block.text);
                piece(event.index, Field::Reasoning, 0, block.thinking);
                piece(event.index, Field::Name, 0, block.name);
                piece(event.index, Field::Arguments, 0, block.partial_json);
            }
        }
        Dialect::Ollama => {
            let line = serde_json::from_slice::<Ollama<'_>>(data).ok()?;
            piece(None, Field::Reasoning, 0, line.thinking);
            piece(None, Field::Content, 0, line.response);
            if let Some(message) = line.message {
                piece(None, Field::Reasoning, 0, message.thinking);
                piece(None, Field::Content, 0, message.content);
                for (call, function) in numbered(message.tool_calls) {
                    piece(None, Field::Name, call, function.name);
                    piece(None, Field::Arguments, call, function.arguments.map(written));
                }
            }
        }
        Dialect::Tgi | Dialect::Llama => {
            let event = serde_json::from_slice::<Native<'_>>(data).ok()?;
            piece(event.index, Field::Content, 0, event.content);
            // TGI counts its tokens by the index.
            piece(None, Field::Content, 0, event.token.and_then(|token| token.text));
        }
    }
    Some(())
}

/// Each call with its number, which is its place where it says none.
fn numbered<'a>(calls: Option<Vec<ToolCall<'a>>>) -> impl Iterator<Item = (u32, Function<'a>)> {
    let calls = (0..).zip(calls.into_iter().flatten());
    calls.filter_map(|(place, call)| Some((call.index.unwrap_or(place), call.function?)))
}

/// Arguments as the model wrote them, as far as that can be known.
fn written(json: &RawValue) -> Cow<'_, str> {
    serde_json::from_str::<String>(json.get()).map_or(json.get().into(), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dialect: Dialect, event: &str, expected: &[(u32, Field, u32, &str)]) {
        let mut found = Vec::new();
        let scanned = dialect.delta(event.as_bytes()).unwrap_or(0);
        let is_whole = of_event(dialect, event.as_bytes(), scanned, |text, piece| {
            found.push((text.choice, text.field, text.part, piece.to_owned()));
        });
        assert!(is_whole || expected.is_empty(), "{event}");
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
    fn what_servers_write_in_their_own_way_is_read_all_the_same() {
        use Field::{Arguments, Content, Name, Reasoning};
        let openai = |event, expected| check(Dialect::Chat, event, expected);
        openai(r#"{"choices":[{"index":null,"delta":{"content":"a"}}]}"#, &[(0, Content, 0, "a")]);
        openai(r#"{"choices":[{"delta":{"reasoning":"r","reasoning_content":""}}]}"#, &[(0, Reasoning, 0, "r")]);
        openai(
            r#"{"choices":[{"delta":{"function_call":{"name":"f","arguments":"{"}}}]}"#,
            &[(0, Name, 0, "f"), (0, Arguments, 0, "{")],
        );
        openai(
            r#"{"choices":[{"delta":{"tool_calls":[{"index":null,"function":{"name":"f","arguments":{"a":1}}},{"function":{"name":"g"}}]}}]}"#,
            &[(0, Name, 0, "f"), (0, Arguments, 0, r#"{"a":1}"#), (0, Name, 1, "g")],
        );
        // Each is one character, as it is written; the scan takes it for three bytes.
        openai(r#"{"choices":[{"delta":{"content":"\u0061\u00e9\ud83d\ude00"}}]}"#, &[(0, Content, 0, "aé😀")]);
        check(
            Dialect::Ollama,
            r#"{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}"#,
            &[(0, Name, 0, "f"), (0, Arguments, 0, r#"{"a":1}"#)],
        );
        check(
            Dialect::Responses,
            r#"{"type":"response.custom_tool_call_input.delta","output_index":null,"delta":"a"}"#,
            &[(0, Arguments, 0, "a")],
        );
    }

    #[test]
    fn text_that_is_not_where_it_should_be_is_known_to_be_read_in_part() {
        let check = |dialect: Dialect, event: &[u8], expected: &str| {
            let (mut text, found) = (String::new(), dialect.delta(event).unwrap());
            let is_whole = of_event(dialect, event, found, |_, piece| text.push_str(piece));
            assert_eq!((is_whole, &*text), (false, expected), "{}", String::from_utf8_lossy(event));
        };
        let openai = |event: &[u8], expected| check(Dialect::Chat, event, expected);
        openai(br#"{"choices":[{"delta":{"content":"a \ud83d"}}]}"#, "a \u{fffd}");
        openai(b"{\"choices\":[{\"delta\":{\"content\":\"a\xe4\xb8b\"}}]}", "ab");
        openai(br#"{"choices":[{"delta":{"content":"a","content":"b"}}]}"#, "ab");
        openai(br#"{"choices":[{"message":{"content":"a"}}]}"#, "a");
        openai(br#"{"choices":[{"delta":{"content":[{"type":"text","text":"a"}]}}]}"#, "a");
        openai(br#"{"choices":[{"index":-1,"delta":{"content":"a"}}]}"#, "a");
        openai(br#"{"choices":[{"delta":{"content":"a"},"more":{"content":"b"}}]}"#, "a");
        openai(br#"{"choices":[{"delta":{"content":"cut o"#, "cut o");
        check(Dialect::Anthropic, br#"{"index":0,"delta":{"partial_json":"{","partial_json":"}"}}"#, "{}");
        check(Dialect::Responses, br#"{"delta":"a","delta":"b"}"#, "ab");
        check(Dialect::Ollama, br#"{"message":{"content":"a","content":"b"}}"#, "ab");
        check(Dialect::Llama, br#"{"index":[],"content":"a"}"#, "a");
        // Text that repeats itself is not worth counting.
        check(Dialect::Tgi, br#"{"text":"a b c","meta_info":{}}"#, "");
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
