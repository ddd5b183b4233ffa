//! What a request asks for.

use serde_json::{Map, Value, json};

use super::{Refusal, Shared, engine::BLOCK, text};
use crate::Seen;

/// The longest answer, over all its choices: a server without a model must not be made to talk for ever either.
const MAX_TOKENS: u64 = 131_072;
/// Where a completion does not say how long it may be; so it is with OpenAI's.
const COMPLETION_TOKENS: u64 = 16;
/// What a chat template adds to each message.
const MESSAGE_TOKENS: u64 = 3;

/// A chat or a completion.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) chat: bool,
    pub(super) model: String,
    pub(super) stream: bool,
    /// A usage event at the end of the stream.
    pub(super) include_usage: bool,
    /// Running usage in every event.
    pub(super) continuous_usage: bool,
    pub(super) choices: u64,
    pub(super) max_tokens: Option<u64>,
    pub(super) min_tokens: u64,
    /// Speak until `max_tokens`, not until there is nothing more to say.
    pub(super) ignore_eos: bool,
    pub(super) prompt_tokens: u64,
    /// What the answer depends on.
    pub(super) prompt_hash: u64,
    /// Its leading words in blocks, each a hash of the block and all before it.
    pub(super) blocks: Vec<u64>,
    pub(super) tool: Option<ToolCall>,
}

#[derive(Debug)]
pub(super) struct ToolCall {
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
}

// === impl Ask ===

impl Ask {
    pub(super) fn parse(shared: &Shared, seen: &Seen, chat: bool) -> Result<Self, Refusal> {
        let (json, model) = shared.read(seen)?;
        let mut prompt_tokens = 0;
        let mut prompt_hash = shared.seed;
        let mut blocks = Vec::new();
        let mut before = text::hash_text(shared.seed, &model);
        let mut prompt = |part: &str, extra: u64| {
            for block in part.split_whitespace().collect::<Vec<_>>().chunks_exact(BLOCK) {
                before = block.iter().fold(before, |before, word| text::hash_text(before, word));
                blocks.push(before);
            }
            prompt_tokens += text::count(part) + extra;
            prompt_hash = text::hash_text(prompt_hash, part);
        };
        if chat {
            let messages = json["messages"].as_array().filter(|messages| !messages.is_empty());
            let messages = messages.ok_or_else(|| Refusal::bad("messages: Field required").with_param("messages"))?;
            for message in messages {
                prompt(&content(&message["content"]), MESSAGE_TOKENS);
            }
        } else {
            match &json["prompt"] {
                Value::String(text) => prompt(text, 0),
                Value::Array(items) if !items.is_empty() => {
                    for item in items {
                        // Texts, or tokens by number.
                        prompt(item.as_str().unwrap_or(&item.to_string()), 0);
                    }
                }
                _ => return Err(Refusal::bad("prompt: Field required").with_param("prompt")),
            }
        }
        let max_tokens = number(&json, "max_completion_tokens")?.or(number(&json, "max_tokens")?);
        let max_tokens = if chat { max_tokens } else { max_tokens.or(Some(COMPLETION_TOKENS)) };
        let choices = number(&json, "n")?.unwrap_or(1);
        if max_tokens == Some(0) {
            return Err(Refusal::bad("max_tokens must be at least 1, got 0.").with_param("max_tokens"));
        }
        if choices == 0 || choices.saturating_mul(max_tokens.unwrap_or(1)) > MAX_TOKENS {
            let message = format!("n must be at least 1, and n times max_tokens at most {MAX_TOKENS}.");
            return Err(Refusal::bad(message).with_param("max_tokens"));
        }
        let options = &json["stream_options"];
        let include_usage = options["include_usage"] == true;
        Ok(Self {
            chat,
            model,
            stream: json["stream"] == true,
            include_usage,
            continuous_usage: include_usage && options["continuous_usage_stats"] == true,
            choices,
            max_tokens,
            min_tokens: number(&json, "min_tokens")?.unwrap_or(0).min(MAX_TOKENS),
            ignore_eos: json["ignore_eos"] == true,
            prompt_tokens,
            prompt_hash,
            blocks,
            tool: if chat { ToolCall::wanted(&json) } else { None },
        })
    }
}

// === impl ToolCall ===

impl ToolCall {
    /// A call, where there are tools and the last word was not a tool's.
    fn wanted(json: &Value) -> Option<Self> {
        let tools = json["tools"].as_array()?;
        let last = json["messages"].as_array()?.last()?;
        let choice = &json["tool_choice"];
        if choice == "none" || last["role"] == "tool" {
            return None;
        }
        let wanted = choice["function"]["name"].as_str();
        let function = |tool: &'_ Value| tool["function"].clone();
        let mut functions = tools.iter().map(function);
        let function = functions.find(|function| wanted.is_none_or(|name| function["name"] == name))?;
        let name = function["name"].as_str()?.to_owned();
        Some(Self { name, arguments: sample(&function["parameters"], 0).to_string() })
    }
}

/// A value that fits a JSON schema, as far as examples, enums, types and required properties say it.
fn sample(schema: &Value, depth: usize) -> Value {
    /// Schemas may nest as deep as JSON may; arguments of a demo need not.
    const DEEPEST: usize = 8;
    if let Some(example) = schema["enum"].get(0).or(schema["examples"].get(0)).or(schema.get("default")) {
        return example.clone();
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match kind {
        Some("string") => json!("demo"),
        Some("integer") => schema["minimum"].as_i64().unwrap_or(1).into(),
        Some("number") => schema["minimum"].as_f64().unwrap_or(1.5).into(),
        Some("boolean") => json!(true),
        Some("array") if depth < DEEPEST => json!([sample(&schema["items"], depth + 1)]),
        Some("array") => json!([]),
        Some("null") => Value::Null,
        _ => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let required = required.take_while(|_| depth < DEEPEST);
            let value = |name: &str| (name.to_owned(), sample(&schema["properties"][name], depth + 1));
            Value::Object(required.map(value).collect::<Map<_, _>>())
        }
    }
}

/// A message's text, be it one or in parts.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

fn number(json: &Value, key: &'static str) -> Result<Option<u64>, Refusal> {
    match &json[key] {
        Value::Null => Ok(None),
        value => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::bad(format!("{key}: must be a whole number, not {value}")).with_param(key)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_fit_the_schema() {
        let schema = json!({"type": "object", "required": ["city", "unit", "days"], "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 3}},
            "optional": {"type": "string"},
        }});
        assert_eq!(sample(&schema, 0), json!({"city": "demo", "unit": "celsius", "days": [3]}));
        assert_eq!(sample(&Value::Null, 0), json!({}));
    }

    #[test]
    fn a_tool_is_not_called_again_when_it_has_answered() {
        let tools =
            json!([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "b"}}]);
        let check = |role: &str, choice: Value, expected: Option<&str>| {
            let ask = json!({"messages": [{"role": role}], "tools": tools, "tool_choice": choice});
            assert_eq!(ToolCall::wanted(&ask).map(|call| call.name).as_deref(), expected);
        };
        check("user", Value::Null, Some("a"));
        check("user", json!("auto"), Some("a"));
        check("user", json!({"type": "function", "function": {"name": "b"}}), Some("b"));
        check("user", json!("none"), None);
        check("tool", Value::Null, None);
    }
}
