//! Where the prompt stands in a body, and what it shows besides text: found on the way of estimating its tokens.

use std::ops::Range;

use llmproxy_core::Prompt;
use serde_json::value::RawValue;

use super::{is_filled, range_of, units};
use crate::estimate::{self, Piece};

/// What of a text that is no list of messages tells one conversation from another, in bytes.
const OPENING: usize = 256;

/// Types of a message's part that is an image: OpenAI's chat and its responses, Anthropic's messages, screenshots that a
/// tool has made.
const IMAGES: [&[u8]; 4] = [b"image_url", b"input_image", b"image", b"computer_screenshot"];

/// Keys under which a prompt stands, the surest first: with `input`, a `prompt` of the Responses API is the name of a
/// template.
const KEYS: [&str; 4] = ["messages", "input", "inputs", "prompt"];

/// The values that a prompt is made of.
#[derive(Default)]
pub(super) struct Values<'a> {
    tools: Option<&'a RawValue>,
    system: Option<&'a RawValue>,
    /// With its place among [`KEYS`].
    text: Option<(usize, &'a RawValue)>,
    /// The member of that name, whatever else there is.
    prompt: Option<&'a RawValue>,
    /// The end of its opening.
    opening: usize,
    pub(super) tokens: u64,
    pub(super) images: bool,
}

/// What is remembered of the JSON so far.
#[derive(Default)]
struct Reader<'a> {
    /// Objects that are open: in the outermost is a message.
    open: usize,
    /// The string before.
    last: &'a [u8],
    /// The member whose value is next.
    key: &'a [u8],
    /// Whether a list has begun in which each entry is an image.
    in_images: bool,
    by_user: bool,
    has_messages: bool,
    opening: Option<usize>,
    images: bool,
}

// === impl Values ===

impl<'a> Values<'a> {
    /// Takes the member if it is a part of a prompt.
    pub(super) fn add(&mut self, key: &str, value: &'a RawValue) {
        match key {
            "tools" | "functions" => {
                self.tokens += estimate::tokens(value.get());
                self.tools = Some(value).filter(|value| is_filled(value)).or(self.tools);
            }
            "system" | "instructions" => {
                self.tokens += estimate::tokens(value.get());
                self.system = Some(value).filter(|value| value.get() != "null").or(self.system);
            }
            _ => self.add_text(key, value),
        }
    }

    fn add_text(&mut self, key: &str, value: &'a RawValue) {
        let Some(rank) = KEYS.iter().position(|known| *known == key) else { return };
        if key == "prompt" {
            self.prompt = Some(value);
        }
        let mut reader = Reader::default();
        self.tokens += estimate::scan(value.get(), |piece, at| reader.see(piece, at));
        self.images |= reader.images;
        if value.get() == "null" || self.text.is_some_and(|(other, _)| other < rank) {
            return;
        }
        let len = value.get().len();
        let all = if reader.has_messages { len } else { len.min(OPENING) };
        self.opening = reader.opening.unwrap_or(all);
        self.text = Some((rank, value));
    }

    /// Whether there are tools that may be called.
    pub(super) fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// How many texts `prompt` is: one, or a list of some.
    pub(super) fn count(&self) -> u64 {
        self.prompt.and_then(units::texts).unwrap_or(1).max(1)
    }

    /// Where all of it stands in `body`.
    pub(super) fn prompt(&self, body: &[u8]) -> Option<Prompt> {
        let text = range_of(self.text?.1, body)?;
        let place = |value: Option<&RawValue>| -> Option<Range<usize>> { range_of(value?, body) };
        let opening = text.start..text.start + self.opening;
        Some(Prompt { before: [place(self.tools), place(self.system)], text, opening })
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Takes the next piece, which ends at `at`.
    fn see(&mut self, piece: Piece<'a>, at: usize) {
        match piece {
            Piece::String(text) => {
                self.images |= self.in_images;
                match (self.key, self.open) {
                    (b"role", 1) => self.by_user = text == b"user",
                    (b"type", 2..) => self.images |= IMAGES.contains(&text),
                    _ => {}
                }
                self.last = text;
            }
            Piece::Mark(b':') => {
                self.key = self.last;
                return;
            }
            Piece::Mark(b'[') => self.in_images = self.key == b"images",
            Piece::Mark(b'{') => {
                self.by_user &= self.open > 0;
                self.open += 1;
                self.has_messages = true;
            }
            Piece::Mark(b'}') => {
                self.open = self.open.saturating_sub(1);
                if self.open == 0 && self.by_user {
                    self.opening.get_or_insert(at);
                }
            }
            Piece::Mark(b']') => self.in_images = false,
            Piece::Mark(_) => {}
        }
        self.key = b"";
    }
}

#[cfg(test)]
mod tests {
    use llmproxy_core::{Call, Endpoint};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::find;

    const CHAT: &str = "/v1/chat/completions";

    fn call(path: &str, body: &str) -> Call {
        find(Endpoint::of(path), body.as_bytes()).expect(body).0
    }

    /// Checks what comes before, the text, and its opening.
    #[track_caller]
    fn check(path: &str, body: &str, before: [Option<&str>; 2], text: &str, opening: &str) {
        let prompt = call(path, body).prompt.expect(body);
        assert_eq!(prompt.before.map(|range| range.map(|range| &body[range])), before, "{body}");
        assert_eq!((&body[prompt.text], &body[prompt.opening]), (text, opening), "{body}");
    }

    #[track_caller]
    fn images(path: &str, body: &str, expected: bool) {
        assert_eq!(call(path, body).needs.images, expected, "{path} {body}");
    }

    #[test]
    fn a_chat_opens_with_all_up_to_the_user_s_first_message() {
        let system = r#"{"role":"system","content":"\"role\":\"user\" {"}"#;
        let opening = format!(r#"[ {system}, {{"content":[{{"type":"text","text":"}}"}}], "role" : "user"}}"#);
        let text = format!(r#"{opening},{{"role":"assistant","content":"a"}},{{"role":"user","content":"b"}} ]"#);
        let body = format!(r#"{{"model":"m","messages": {text} ,"tools":[{{"type":"function"}}]}}"#);
        check(CHAT, &body, [Some(r#"[{"type":"function"}]"#), None], &text, &opening);
        check("/api/chat", &body, [Some(r#"[{"type":"function"}]"#), None], &text, &opening);
    }

    #[test]
    fn what_the_system_says_outside_of_the_messages_comes_before() {
        let (text, opening) = (r#"[{"role":"user","content":"hi"}]"#, r#"[{"role":"user","content":"hi"}"#);
        let body = format!(r#"{{"system":[{{"type":"text","text":"be kind"}}],"max_tokens":1,"messages":{text}}}"#);
        check("/v1/messages", &body, [None, Some(r#"[{"type":"text","text":"be kind"}]"#)], text, opening);
        let body = format!(r#"{{"instructions":"be kind","prompt":{{"id":"p"}},"input":{text}}}"#);
        check("/v1/responses", &body, [None, Some(r#""be kind""#)], text, opening);
        let body = format!(r#"{{"input":{text},"prompt":{{"id":"p"}},"instructions":null,"tools":[ ]}}"#);
        check("/v1/responses", &body, [None, None], text, opening);
        check("/api/generate", r#"{"system":"s","prompt":"hi"}"#, [None, Some(r#""s""#)], r#""hi""#, r#""hi""#);
    }

    #[test]
    fn of_a_text_the_beginning_is_its_opening() {
        let long = format!("\"{}\"", "word ".repeat(100));
        for (path, key) in [("/v1/completions", "prompt"), ("/v1/responses", "input"), ("/generate", "inputs")] {
            check(path, &format!(r#"{{"{key}":"hi"}}"#), [None, None], r#""hi""#, r#""hi""#);
            check(path, &format!(r#"{{"{key}": {long}}}"#), [None, None], &long, &long[..256]);
        }
        check("/v1/completions", r#"{"prompt":[1, 2]}"#, [None, None], "[1, 2]", "[1, 2]");
        check("/v1/embeddings", r#"{"input":["a","b"]}"#, [None, None], r#"["a","b"]"#, r#"["a","b"]"#);
    }

    #[test]
    fn messages_of_which_none_is_the_user_s_are_all_the_opening() {
        let text = r#"[{"role":"system","content":"s"},{"role":"tool","content":{"role":"user"}}]"#;
        check(CHAT, &format!(r#"{{"messages":{text}}}"#), [None, None], text, text);
        check(CHAT, r#"{"messages":[]}"#, [None, None], "[]", "[]");
        let batch = r#"[[{"role":"user","content":"a"}],[{"role":"user","content":"b"}]]"#;
        let path = "/v1/chat/completions/batch";
        check(path, &format!(r#"{{"messages":{batch}}}"#), [None, None], batch, r#"[[{"role":"user","content":"a"}"#);
    }

    #[test]
    fn where_there_is_no_prompt_none_is_found() {
        for body in ["{}", r#"{"messages":null}"#, r#"{"tools":[{}],"system":"s"}"#] {
            assert_eq!(call(CHAT, body).prompt, None, "{body}");
        }
    }

    #[test]
    fn images_are_seen_in_all_dialects() {
        let message = |part: &str| {
            let parts = format!(r#"[{{"type":"text","text":"what is it?"}},{part}]"#);
            format!(r#"{{"messages":[{{"role":"user","content":{parts}}}]}}"#)
        };
        images(CHAT, &message(r#"{"type":"image_url","image_url":{"url":"http://x"}}"#), true);
        images(CHAT, &message(r#"{"image_url":{"url":"http://x"},"type" : "image_url"}"#), true);
        images(CHAT, &message(r#"{"type":"text","text":"\"type\":\"image\""}"#), false);
        images(CHAT, &message(r#"{"type":"input_audio","input_audio":{"data":"AA=="}}"#), false);
        images("/v1/messages", &message(r#"{"type":"image","source":{"type":"url"}}"#), true);
        let result = r#"{"type":"tool_result","content":[{"type":"image","source":{}}]}"#;
        images("/v1/messages", &message(result), true);
        let item = r#"{"input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]}]}"#;
        images("/v1/responses", item, true);
        images("/v1/responses", r#"{"input":[{"type":"image","id":"i"}]}"#, false);
        images("/api/chat", r#"{"messages":[{"role":"user","images":["AA=="]}]}"#, true);
        images("/api/chat", r#"{"messages":[{"role":"user","images":[ ]},{"content":"a"}]}"#, false);
        images("/api/chat", r#"{"messages":[{"role":"user","images":null}]}"#, false);
        images("/api/generate", r#"{"prompt":"a","images":["AA=="]}"#, true);
        images("/api/generate", r#"{"prompt":"a","images":[ ]}"#, false);
    }

    fn any_message() -> impl Strategy<Value = Value> {
        let role = prop_oneof![Just("user"), Just("system"), Just("assistant"), Just("tool")];
        let text = prop_oneof![".{0,12}", Just("\"role\":\"user\"}]".to_owned())];
        let content = prop_oneof![
            text.clone().prop_map(Value::from),
            prop::collection::vec(text, 0..3).prop_map(|texts| texts
                .iter()
                .map(|text| json!({"type": "text", "role": "user", "x": text}))
                .collect()),
        ];
        (role, content).prop_map(|(role, content)| json!({"role": role, "content": content}))
    }

    proptest! {
        #[test]
        fn what_is_found_is_json_in_the_body(
            messages in prop::collection::vec(any_message(), 0..5),
            system in prop::option::of(".{0,8}"),
            tools in prop::collection::vec("[a-z]{1,4}", 0..3),
            pretty in any::<bool>(),
        ) {
            let request = json!({"x": 1, "system": system, "messages": messages, "tools": tools, "model": "m"});
            let text = if pretty { serde_json::to_string_pretty(&request) } else { serde_json::to_string(&request) };
            let body = text.unwrap();
            let prompt = call("/v1/messages", &body).prompt.unwrap();
            let value = |range: std::ops::Range<usize>| serde_json::from_str::<Value>(&body[range]).unwrap();
            prop_assert_eq!(value(prompt.text.clone()), json!(messages));
            let [before, said] = prompt.before.map(|range| range.map(value));
            prop_assert_eq!(before, (!tools.is_empty()).then(|| json!(tools)));
            prop_assert_eq!(said, system.map(Value::from));

            // Closed, the opening is the messages up to the user's first one, or all of them.
            prop_assert_eq!(prompt.opening.start, prompt.text.start);
            let first = messages.iter().position(|message| message["role"] == "user");
            let (count, end) = first.map_or((messages.len(), ""), |first| (first + 1, "]"));
            let opening = serde_json::from_str::<Value>(&format!("{}{end}", &body[prompt.opening])).unwrap();
            prop_assert_eq!(opening, json!(messages[..count]));
        }
    }
}
