//! A request's conversation as a chat template is given it, from whichever API it came by.

use minijinja::{Value, value::ValueKind};

use super::{
    bounds::{MAX_VALUES, values},
    python::pairs,
    template::Takes,
};

/// A conversation.
pub(super) struct Chat {
    /// What was said, each with `role` and `content` at least.
    pub(super) messages: Vec<Value>,
    /// What else the template is told.
    pub(super) context: Vec<(String, Value)>,
    /// The model goes on with the last message rather than to begin one of its own.
    pub(super) continues: bool,
    /// Whether all of it can be counted exactly.
    pub(super) exact: bool,
    /// Values that may yet be made of JSON in strings.
    left: usize,
}

/// The member `name` of a map, unless it is null.
pub(super) fn member(map: &Value, name: &str) -> Option<Value> {
    map.get_attr(name).ok().filter(|value| !value.is_undefined() && !value.is_none())
}

/// The entries of a list.
pub(super) fn entries(list: &Value) -> Vec<Value> {
    if list.kind() == ValueKind::Seq { list.try_iter().into_iter().flatten().collect() } else { Vec::new() }
}

// === impl Chat ===

impl Chat {
    /// OpenAI's chat, with what vLLM and others have added to it; and Ollama's.
    pub(super) fn openai(body: &Value, takes: Takes) -> Option<Self> {
        let mut chat = Self::new(body);
        for message in entries(&member(body, "messages")?) {
            let message = chat.message(&message, takes);
            chat.messages.push(message);
        }
        chat.tell("tools", member(body, "tools").filter(Value::is_true).unwrap_or(Value::from(())));
        chat.tell("documents", member(body, "documents").unwrap_or(Value::from(())));
        let is_said = |name, default| member(body, name).map_or(default, |value| value.is_true());
        chat.continues = is_said("continue_final_message", false);
        chat.tell("add_generation_prompt", is_said("add_generation_prompt", !chat.continues).into());
        if let Some(effort) = member(body, "reasoning_effort") {
            chat.tell("reasoning_effort", effort);
        }
        let kwargs = member(body, "chat_template_kwargs").filter(|kwargs| kwargs.kind() == ValueKind::Map);
        for (name, value) in kwargs.iter().flat_map(pairs) {
            chat.tell(name.as_str().unwrap_or_default(), value);
        }
        // The server may have taken the request's own template, or not.
        chat.exact &= member(body, "chat_template").is_none();
        Some(chat)
    }

    /// Anthropic's messages.
    pub(super) fn anthropic(body: &Value, takes: Takes) -> Option<Self> {
        let mut chat = Self::new(body);
        if let Some(system) = member(body, "system") {
            let text = match system.as_str() {
                Some(text) => text.to_owned(),
                None => entries(&system)
                    .iter()
                    .filter_map(|part| member(part, "text"))
                    .map(|text| text.to_string())
                    .collect(),
            };
            chat.say("system", text.into(), takes);
        }
        for message in entries(&member(body, "messages")?) {
            let role = member(&message, "role")?;
            let content = member(&message, "content")?;
            let (mut said, mut calls) = (Vec::new(), Vec::new());
            for part in entries(&content) {
                match member(&part, "type").as_ref().and_then(Value::as_str) {
                    Some("tool_use") => calls.push(part),
                    Some("tool_result") => {
                        // It stands before what the user says to it.
                        chat.exact = false;
                        let result = member(&part, "content").unwrap_or_default();
                        chat.say("tool", result, takes);
                        chat.answers(member(&part, "tool_use_id"));
                    }
                    _ => said.push(part),
                }
            }
            let content = if content.kind() == ValueKind::String { content } else { Value::from(said) };
            let has_content = content.len() != Some(0);
            if calls.is_empty() {
                if has_content {
                    chat.say(&role.to_string(), content, takes);
                }
                continue;
            }
            chat.exact = false;
            let content = chat.content(&content, takes);
            let call = |call: &Value| {
                let made = function(member(call, "name"), "arguments", member(call, "input"), None);
                named("id", member(call, "id"), made)
            };
            let calls = Value::from_iter(calls.iter().map(call));
            chat.messages.push(Value::from_pairs([("role", role), ("content", content), ("tool_calls", calls)]));
        }
        let tool = |tool: &Value| {
            function(member(tool, "name"), "parameters", member(tool, "input_schema"), member(tool, "description"))
        };
        chat.tools(body, tool);
        Some(chat)
    }

    /// OpenAI's responses.
    pub(super) fn responses(body: &Value, takes: Takes) -> Option<Self> {
        let mut chat = Self::new(body);
        // What went before is known to the server alone.
        chat.exact &= member(body, "previous_response_id").is_none() && member(body, "conversation").is_none();
        if let Some(instructions) = member(body, "instructions") {
            chat.say("system", instructions, takes);
        }
        let input = member(body, "input")?;
        if input.kind() == ValueKind::String {
            chat.say("user", input, takes);
        } else {
            for item in entries(&input) {
                match member(&item, "type").as_ref().and_then(Value::as_str) {
                    None | Some("message") => {
                        let role = member(&item, "role")?;
                        chat.say(&role.to_string(), member(&item, "content").unwrap_or_default(), takes);
                    }
                    Some("function_call") => {
                        let call = function(member(&item, "name"), "arguments", member(&item, "arguments"), None);
                        let call = named("id", member(&item, "call_id"), chat.arguments_parsed(&call));
                        let (role, content) = (Value::from("assistant"), chat.content(&Value::from(()), takes));
                        let calls = Value::from(vec![call]);
                        chat.messages.push(Value::from_pairs([
                            ("role", role),
                            ("content", content),
                            ("tool_calls", calls),
                        ]));
                    }
                    Some("function_call_output") => {
                        chat.say("tool", member(&item, "output").unwrap_or_default(), takes);
                        chat.answers(member(&item, "call_id"));
                    }
                    Some(_) => chat.exact = false,
                }
            }
        }
        let tool = |tool: &Value| {
            function(member(tool, "name"), "parameters", member(tool, "parameters"), member(tool, "description"))
        };
        chat.tools(body, tool);
        Some(chat)
    }

    /// What all messages say, one below the other.
    pub(super) fn plain(&self) -> String {
        let mut plain = String::new();
        for message in &self.messages {
            let content = member(message, "content").unwrap_or_default();
            let texts = match content.as_str() {
                Some(text) => vec![text.to_owned()],
                None => entries(&content).iter().filter_map(|part| Some(member(part, "text")?.to_string())).collect(),
            };
            texts.iter().for_each(|text| plain.extend([text, "\n"]));
        }
        plain
    }

    fn new(body: &Value) -> Self {
        // It is cut to a length.
        let exact = member(body, "truncate_prompt_tokens").is_none();
        Self { messages: Vec::new(), context: Vec::new(), continues: false, exact, left: MAX_VALUES }
    }

    fn tell(&mut self, name: &str, value: Value) {
        self.context.push((name.to_owned(), value));
    }

    fn tools(&mut self, body: &Value, tool: impl Fn(&Value) -> Value) {
        let tools = member(body, "tools").map(|tools| entries(&tools)).filter(|tools| !tools.is_empty());
        // Only functions are something to the model.
        let all_functions = tools
            .iter()
            .flatten()
            .all(|tool| member(tool, "type").is_none_or(|kind| matches!(kind.as_str(), Some("function" | "custom"))));
        self.exact &= all_functions;
        self.tell("tools", tools.map_or(Value::from(()), |tools| Value::from_iter(tools.iter().map(tool))));
        self.tell("documents", Value::from(()));
        self.tell("add_generation_prompt", true.into());
    }

    fn say(&mut self, role: &str, content: Value, takes: Takes) {
        let content = self.content(&content, takes);
        self.messages.push(Value::from_pairs([("role", Value::from(role)), ("content", content)]));
    }

    /// The last message is what came of the call with this id.
    fn answers(&mut self, id: Option<Value>) {
        if let Some(message) = self.messages.pop() {
            self.messages.push(named("tool_call_id", id, message));
        }
    }

    /// A message with its content as the template takes it, and calls of tools as values rather than as JSON in a string.
    fn message(&mut self, message: &Value, takes: Takes) -> Value {
        let content = member(message, "content").unwrap_or_default();
        let content = self.content(&content, takes);
        let mut members: Vec<_> = pairs(message)
            .into_iter()
            .filter(|(name, _)| name.as_str() != Some("content"))
            .map(|(name, value)| match name.as_str() {
                Some("tool_calls") => {
                    let calls = entries(&value);
                    (name, Value::from_iter(calls.iter().map(|call| self.arguments_parsed(call))))
                }
                // Ollama's pictures.
                Some("images") => {
                    self.exact &= !value.is_true();
                    (name, value)
                }
                _ => (name, value),
            })
            .collect();
        members.insert(members.len().min(1), (Value::from("content"), content));
        Value::from_pairs(members)
    }

    /// What a message says, as the template takes it.
    fn content(&mut self, content: &Value, takes: Takes) -> Value {
        if content.kind() != ValueKind::Seq {
            let text = Value::from(content.as_str().unwrap_or_default());
            return match takes {
                Takes::Text | Takes::Both => text,
                Takes::Parts if text.len() == Some(0) => Value::from(Vec::<Value>::new()),
                Takes::Parts => Value::from(vec![text_part(&text)]),
            };
        }
        let mut parts = Vec::new();
        let mut texts = Vec::new();
        for part in entries(content) {
            let kind = member(&part, "type");
            let text = match kind.as_ref().and_then(Value::as_str) {
                _ if part.kind() == ValueKind::String => Some(part.clone()),
                Some("text" | "input_text" | "output_text") => member(&part, "text"),
                Some("refusal") => member(&part, "refusal"),
                _ => None,
            };
            match text {
                Some(text) => {
                    parts.push(text_part(&text));
                    texts.push(text.as_str().unwrap_or_default().to_owned());
                }
                // An image, a sound, a file: how many tokens it is only its model knows.
                None => {
                    self.exact = false;
                    parts.push(part);
                }
            }
        }
        if takes == Takes::Text { Value::from(texts.join("\n")) } else { Value::from(parts) }
    }

    /// A call whose arguments are a value. Clients send JSON in a string; templates write them as JSON again.
    fn arguments_parsed(&mut self, call: &Value) -> Value {
        let Some(function) = member(call, "function") else { return call.clone() };
        let parsed = |(name, value): (Value, Value)| {
            let is_json = name.as_str() == Some("arguments") && value.kind() == ValueKind::String;
            let json = value.as_str().filter(|_| is_json).map(|json| if json.is_empty() { "{}" } else { json });
            let value = json.and_then(|json| self.parsed(json)).unwrap_or(value);
            (name, value)
        };
        let function = Value::from_pairs(pairs(&function).into_iter().map(parsed));
        let members = pairs(call).into_iter().map(|(name, value)| match name.as_str() {
            Some("function") => (name, function.clone()),
            _ => (name, value),
        });
        Value::from_pairs(members)
    }

    /// The value of JSON in a string; `None` where it is none, or more than there is room for.
    fn parsed(&mut self, json: &str) -> Option<Value> {
        let parsed = values(json.as_bytes(), self.left).and_then(|count| {
            self.left -= count;
            serde_json::from_str(json).ok()
        });
        // Its text goes to the template as it is, which a server would not do, or could not.
        self.exact &= parsed.is_some();
        parsed
    }
}

fn text_part(text: &Value) -> Value {
    Value::from_pairs([("type", Value::from("text")), ("text", text.clone())])
}

/// `map` with one member more, if there is one, in front of the others.
fn named(name: &'static str, value: Option<Value>, map: Value) -> Value {
    let first = value.map(|value| (Value::from(name), value));
    Value::from_pairs(first.into_iter().chain(pairs(&map)))
}

/// A function as OpenAI's chat has it, to be called or that was called.
fn function(name: Option<Value>, key: &'static str, value: Option<Value>, description: Option<Value>) -> Value {
    let members = [("name", name), ("description", description), (key, value)];
    let members = members.into_iter().filter_map(|(key, value)| Some((key, value?)));
    Value::from_pairs([("type", Value::from("function")), ("function", Value::from_pairs(members))])
}
