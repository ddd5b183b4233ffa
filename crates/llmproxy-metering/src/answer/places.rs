//! Where in its JSON an answer has text.

use super::Dialect;

/// Which strings of an answer are text.
#[derive(Debug)]
pub(super) struct Places {
    /// The members at the top in which the answer stands; whatever else is there only tells of it, or repeats what was
    /// asked. `None` where it is anywhere.
    roots: Option<&'static [&'static str]>,
    /// The keys under which there is text, however deep.
    keys: &'static [&'static str],
    /// Those under which there is what a tool is called with, which the model has written in a way of its own: a text, or
    /// an object.
    calls: &'static [&'static str],
}

/// What a value is that stands under a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) is_text: bool,
    pub(super) is_call: bool,
    /// Whether it is what the model has thought.
    is_thought: bool,
    /// Which of the names it has under which some servers write the same.
    twin: Option<Twin>,
}

/// What a model thinks has had two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twin {
    Old,
    New,
}

/// Where in an answer the reading is.
#[derive(Debug)]
pub(super) struct Outline {
    places: &'static Places,
    depth: u32,
    /// Whether the answer is a list of answers.
    is_list: bool,
    is_begun: bool,
    is_inside: bool,
    has_thoughts: bool,
    /// How deep the object is that has had its thoughts, and under which name.
    thought: Option<(u32, Twin)>,
}

/// TGI's name for all of a text, and SGLang's.
const TGI: &[&str] = &["generated_text", "text"];

// === impl Places ===

impl Places {
    /// Of an answer that is no stream.
    pub(super) fn of(dialect: Dialect) -> &'static Self {
        match dialect {
            Dialect::Chat | Dialect::Completions => &Self {
                roots: Some(&["choices"]),
                keys: &["content", "text", "reasoning_content", "reasoning", "refusal", "name", "arguments"],
                calls: &["name", "arguments"],
            },
            Dialect::Responses => &Self {
                roots: Some(&["output"]),
                keys: &["text", "refusal", "name", "arguments", "input"],
                calls: &["name", "arguments", "input"],
            },
            Dialect::Anthropic => &Self {
                roots: Some(&["content"]),
                keys: &["text", "thinking", "name", "input"],
                calls: &["name", "input"],
            },
            Dialect::Ollama => &Self {
                roots: Some(&["response", "thinking", "message"]),
                keys: &["response", "content", "thinking", "name", "arguments"],
                calls: &["name", "arguments"],
            },
            Dialect::Tgi => &Self { roots: Some(TGI), keys: TGI, calls: &[] },
            Dialect::Llama => &Self { roots: Some(&["content"]), keys: &["content"], calls: &[] },
            Dialect::Reading | Dialect::Sound => &Self { roots: Some(&[]), keys: &[], calls: &[] },
        }
    }

    /// Of an event that is not as the dialect has it. SGLang repeats under `text` all that was before.
    pub(super) fn of_event(dialect: Dialect) -> &'static Self {
        match dialect {
            Dialect::Chat | Dialect::Completions | Dialect::Reading => &Self {
                roots: None,
                keys: &["content", "text", "reasoning_content", "reasoning", "refusal", "name", "arguments"],
                calls: &["arguments"],
            },
            Dialect::Responses | Dialect::Sound => &Self { roots: None, keys: &["delta"], calls: &[] },
            Dialect::Anthropic => {
                &Self { roots: None, keys: &["text", "thinking", "name", "partial_json"], calls: &[] }
            }
            Dialect::Ollama => &Self {
                roots: None,
                keys: &["response", "content", "thinking", "name", "arguments"],
                calls: &["arguments"],
            },
            Dialect::Llama => &Self { roots: None, keys: &["content"], calls: &[] },
            Dialect::Tgi => &Self { roots: None, keys: &[], calls: &[] },
        }
    }

    /// Whether there is no text anywhere.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

// === impl Outline ===

impl Outline {
    pub(super) fn new(places: &'static Places) -> Self {
        Self {
            places,
            depth: 0,
            is_list: false,
            is_begun: false,
            is_inside: places.roots.is_none(),
            has_thoughts: false,
            thought: None,
        }
    }

    /// Whether all of a value has passed.
    pub(super) fn is_over(&self) -> bool {
        self.is_begun && self.depth == 0
    }

    /// Whether there was anything that the model has thought.
    pub(super) fn has_thoughts(&self) -> bool {
        self.has_thoughts
    }

    /// Whether nothing of it is of interest.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A bracket has passed.
    pub(super) fn bracket(&mut self, byte: u8) {
        if matches!(byte, b'{' | b'[') {
            self.is_list |= !self.is_begun && byte == b'[';
            self.is_begun = true;
            self.depth = self.depth.saturating_add(1);
        } else {
            self.depth = self.depth.saturating_sub(1);
            self.thought = self.thought.filter(|(depth, _)| *depth <= self.depth);
        }
    }

    /// A key has passed, and its colon.
    pub(super) fn key(&mut self, key: &[u8]) {
        if let Some(roots) = self.places.roots
            && self.depth == 1 + u32::from(self.is_list)
        {
            self.is_inside = is_in(roots, key);
        }
        // What /v1/responses has of them has the keys of any text, and one beside it.
        self.has_thoughts |= self.is_inside && key == b"summary";
    }

    /// What stands under `key`, which passed last.
    pub(super) fn value(&self, key: &[u8]) -> Value {
        if !self.is_inside {
            return Value::default();
        }
        let twin = match key {
            b"reasoning_content" => Some(Twin::Old),
            b"reasoning" => Some(Twin::New),
            _ => None,
        };
        let is_again =
            twin.is_some() && self.thought.is_some_and(|(depth, known)| depth == self.depth && Some(known) != twin);
        Value {
            is_text: !is_again && is_in(self.places.keys, key),
            is_call: is_in(self.places.calls, key),
            is_thought: twin.is_some() || key == b"thinking",
            twin,
        }
    }

    /// A text has ended that was not empty.
    pub(super) fn had(&mut self, value: Value) {
        self.has_thoughts |= value.is_thought;
        if let Some(twin) = value.twin {
            self.thought = Some((self.depth, twin));
        }
    }
}

fn is_in(names: &[&str], key: &[u8]) -> bool {
    names.iter().any(|name| name.as_bytes() == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::strings::{Piece, Strings};

    /// What is heard of a plain answer, one text after another, and whether there are calls in it.
    fn check(dialect: Dialect, json: &str, expected: &[&str], has_calls: bool) {
        for at in 0..=json.len() {
            let (mut strings, mut texts, mut current) = (Strings::new(Places::of(dialect)), Vec::new(), String::new());
            let (head, tail) = json.as_bytes().split_at(at);
            for part in [head, tail] {
                strings.feed(part, |piece| match piece {
                    Piece::Text(text) => current.push_str(text),
                    Piece::End => texts.push(std::mem::take(&mut current)),
                });
            }
            assert_eq!(texts, expected, "{json} at {at}");
            assert_eq!(strings.has_calls(), has_calls, "{json} at {at}");
            assert!(strings.is_over() && !strings.is_mended(), "{json} at {at}");
        }
    }

    #[test]
    fn what_is_not_the_answer_is_no_text() {
        let openai = |json, expected| check(Dialect::Chat, json, expected, false);
        openai(r#"{"choices":[{"message":{"content":"a"},"text":"b"}],"debug":{"text":"x"},"text":"y"}"#, &["a", "b"]);
        openai(r#"{"text":"y","prompt":[{"content":"x"}],"choices":[{"message":{"content":"a"}}]}"#, &["a"]);
        openai(
            r#"{"choices":[{"logprobs":{"content":[{"token":"x"}]},"text":"a"}],"x":{"choices":{"text":"n"}}}"#,
            &["a"],
        );
        let responses = r#"{"instructions":"x","input":[{"content":[{"type":"input_text","text":"x"}]}],
            "tools":[{"name":"x"}],"output":[{"content":[{"type":"output_text","text":"a"}]}],"text":{"format":{"text":"x"}}}"#;
        check(Dialect::Responses, responses, &["a"], false);
        check(Dialect::Anthropic, r#"{"content":[{"type":"text","text":"a"}],"text":"x"}"#, &["a"], false);
        check(Dialect::Ollama, r#"{"message":{"content":"a","thinking":"b"},"text":"x"}"#, &["a", "b"], false);
        check(Dialect::Ollama, r#"{"response":"a","context":[1]}"#, &["a"], false);
        check(Dialect::Tgi, r#"{"generated_text":"a","details":{"tokens":[{"text":"a"}]}}"#, &["a"], false);
        check(Dialect::Tgi, r#"[{"text":"a"},{"text":"b"}]"#, &["a", "b"], false);
        check(Dialect::Llama, r#"[{"content":"a","x":{"content":"x"}},{"content":"b"}]"#, &["a", "b"], false);
        check(Dialect::Reading, r#"{"data":[{"text":"x"}]}"#, &[], false);
    }

    #[test]
    fn what_a_model_thinks_counts_once_under_two_names() {
        let openai = |json, expected| check(Dialect::Chat, json, expected, false);
        openai(r#"{"choices":[{"message":{"content":"a","reasoning":"b"}}]}"#, &["a", "b"]);
        openai(r#"{"choices":[{"message":{"reasoning_content":"b","content":"a","reasoning":"b"}}]}"#, &["b", "a"]);
        openai(r#"{"choices":[{"message":{"reasoning":"b","reasoning_content":"b"}}]}"#, &["b"]);
        openai(r#"{"choices":[{"message":{"reasoning_content":"","reasoning":"b"}}]}"#, &["", "b"]);
        openai(r#"{"choices":[{"message":{"reasoning":"b"}},{"message":{"reasoning_content":"c"}}]}"#, &["b", "c"]);
    }

    #[test]
    fn thoughts_are_known() {
        let check = |dialect, json: &str, expected| {
            let mut strings = Strings::new(Places::of(dialect));
            strings.feed(json.as_bytes(), |_| {});
            assert_eq!(strings.has_thoughts(), expected, "{json}");
        };
        check(Dialect::Chat, r#"{"choices":[{"message":{"content":"a","reasoning":"b"}}]}"#, true);
        check(Dialect::Chat, r#"{"choices":[{"message":{"reasoning_content":"b"}}]}"#, true);
        check(
            Dialect::Chat,
            r#"{"choices":[{"message":{"content":"a","reasoning":null,"reasoning_content":""}}]}"#,
            false,
        );
        check(Dialect::Anthropic, r#"{"content":[{"type":"thinking","thinking":"a"}]}"#, true);
        check(Dialect::Ollama, r#"{"message":{"content":"a","thinking":"b"}}"#, true);
        check(Dialect::Responses, r#"{"output":[{"type":"reasoning","summary":[],"content":[{"text":"a"}]}]}"#, true);
        check(Dialect::Responses, r#"{"reasoning":{"summary":"auto"},"output":[{"content":[{"text":"a"}]}]}"#, false);
    }

    #[test]
    fn calls_of_tools_are_text_as_they_stand() {
        let called = |dialect, json, expected| check(dialect, json, expected, true);
        let function = r#"{"choices":[{"message":{"content":null,"tool_calls":[{"id":"x","type":"function",
            "function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#;
        called(Dialect::Chat, function, &["f", r#"{"a":1}"#]);
        called(
            Dialect::Chat,
            r#"{"choices":[{"message":{"function_call":{"name":"f","arguments":{"a":"}\"","b":[{}]}}},"text":"t"}]}"#,
            &["f", r#"{"a":"}\"","b":[{}]}"#, "t"],
        );
        let anthropic = r#"{"content":[{"type":"tool_use","id":"x","name":"f","input":{"a":"b"}},{"text":"t"}]}"#;
        called(Dialect::Anthropic, anthropic, &["f", r#"{"a":"b"}"#, "t"]);
        called(Dialect::Responses, r#"{"output":[{"type":"custom_tool_call","name":"f","input":"a"}]}"#, &["f", "a"]);
        let ollama = r#"{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}"#;
        called(Dialect::Ollama, ollama, &["", "f", r#"{"a":1}"#]);
    }
}
