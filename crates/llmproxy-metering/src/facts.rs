//! What a request asks for, found in its JSON without changing or copying it.

use std::{borrow::Cow, ops::Range, sync::Arc};

use llmproxy_core::{Api, Call, Edits, Endpoint, Insertion, Needs, Work};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{InspectError, answer::Dialect};

mod needs;
mod prompt;
pub(crate) mod units;

const WHOLE_MEMBER: &str = r#""stream_options":{"include_usage":true},"#;
const WHOLE_VALUE: &str = r#"{"include_usage":true}"#;
const FIRST_MEMBER: &str = r#""include_usage":true,"#;
const ONLY_MEMBER: &str = r#""include_usage":true"#;
const ONLY_VALUE: &str = "true";

/// The longest name of a model, in bytes. It is kept in records and lines of logs, which outlive the body that it came in.
pub(crate) const MAX_MODEL: usize = 512;
/// The longest name of whom a request is for; of a longer one the beginning counts.
const MAX_USER: usize = 512;

/// The keys that decide what becomes of a request.
const DECIDING: [&str; 3] = ["model", "stream", "stream_options"];

/// A JSON object's members of interest. Each value is a slice of the body.
#[derive(Default)]
struct Members<'a> {
    model: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    n: Option<u64>,
    max_output: Option<u64>,
    prompt: prompt::Values<'a>,
    users: Users<'a>,
    images: bool,
    json_schema: bool,
    /// What is read out, or embedded.
    input: Option<&'a RawValue>,
    /// What is ranked or scored.
    documents: Option<&'a RawValue>,
    duplicate: Option<&'static str>,
    misspelt: Option<(&'static str, String)>,
    /// Whether `model` is among these.
    is_model_misspelt: bool,
}

/// Where it may stand whom a request is for.
#[derive(Default)]
struct Users<'a> {
    prompt_cache_key: Option<&'a RawValue>,
    user: Option<&'a RawValue>,
    safety_identifier: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
}

/// Anthropic's `metadata`.
#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Members that decide about usage in a stream.
#[derive(Deserialize)]
struct StreamOptions<'a> {
    #[serde(borrow, default, deserialize_with = "even_null")]
    include_usage: Option<&'a RawValue>,
    #[serde(borrow)]
    continuous_usage_stats: Option<&'a RawValue>,
}

/// Ollama's and TGI's bounds stand in an object of their own.
#[derive(Deserialize)]
struct Options<'a> {
    #[serde(borrow)]
    num_predict: Option<&'a RawValue>,
    #[serde(borrow)]
    max_new_tokens: Option<&'a RawValue>,
}

/// Whether `endpoint` takes JSON and nothing else, so that a body that is none can be refused.
pub(crate) fn takes_json(endpoint: Endpoint) -> bool {
    const OTHERS: [&str; 5] = [
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/v1/realtime",
    ];
    endpoint.is_known() && endpoint.api() != Api::Proxy && !OTHERS.contains(&endpoint.template())
}

/// Whether an answer of `endpoint` is a stream unless the request says otherwise.
pub(crate) fn streams_by_default(endpoint: Endpoint) -> bool {
    matches!(endpoint.template(), "/api/chat" | "/api/generate" | "/generate_stream")
}

/// Finds what `body` asks `endpoint` for, and where it may be edited.
///
/// # Errors
///
/// If the endpoint takes only JSON and this is none, or no object, or a key that decides is of a wrong type or not
/// clear. For other endpoints only if a key that decides is there twice, the model's in another case, too, or the model's
/// name is too long.
pub(crate) fn find(endpoint: Endpoint, body: &[u8]) -> Result<(Call, Edits), InspectError> {
    let strict = takes_json(endpoint);
    let mut call = Call::new(endpoint);
    call.stream = streams_by_default(endpoint);
    call.body_bytes = body.len() as u64;
    let members = match read(endpoint, body) {
        Ok(members) => members,
        Err(_) if !strict => return Ok((call, Edits::default())),
        Err(error) => {
            return Err(match serde_json::from_slice::<&RawValue>(body) {
                Ok(_) => InspectError::NotObject,
                Err(_) => InspectError::BadJson { problem: error.to_string() },
            });
        }
    };
    call.units = units::of(endpoint, &members);
    if let Some(param) = members.duplicate {
        return Err(InspectError::Duplicate { param });
    }
    if let Some((param, found)) = members.misspelt.filter(|_| strict) {
        return Err(InspectError::Misspelt { param, found });
    }
    let mut edits = Edits::default();
    if let Some(raw) = members.model.filter(|raw| raw.get() != "null") {
        match serde_json::from_str::<String>(raw.get()) {
            Ok(model) if model.len() > MAX_MODEL => {
                return Err(InspectError::WrongType { param: "model", expected: "a name of at most 512 bytes" });
            }
            // Where any body may pass, servers still differ in which of the two they take.
            Ok(_) if members.is_model_misspelt => return Err(InspectError::Duplicate { param: "model" }),
            Ok(model) => {
                call.model = Some(Arc::from(model));
                edits.model = range_of(raw, body);
            }
            Err(_) if strict => return Err(InspectError::WrongType { param: "model", expected: "a string" }),
            Err(_) => {}
        }
    }
    if let Some(raw) = members.stream {
        match raw.get() {
            "true" => call.stream = true,
            "false" => call.stream = false,
            "null" => {}
            _ if strict => return Err(InspectError::WrongType { param: "stream", expected: "true or false" }),
            _ => {}
        }
    }
    let generates = matches!(endpoint.work(), Work::Chat | Work::Completion);
    if call.stream && generates && Dialect::of(endpoint).takes_stream_options() {
        (call.asked_usage, edits.include_usage) = usage_edit(members.stream_options, body);
    }
    call.prompt_estimate = members.prompt.tokens;
    call.prompt = members.prompt.prompt(body);
    call.user = members.users.name(endpoint);
    call.needs = Needs {
        tools: members.prompt.has_tools(),
        images: members.images || members.prompt.images,
        json_schema: members.json_schema,
    };
    let is_text = endpoint.template() == "/v1/completions";
    let prompts = if is_text { members.prompt.count() } else { 1 };
    let answers = members.n.unwrap_or(1).max(1).saturating_mul(prompts);
    // No other one is known to give several, so none is expected to; but a bound is one of all that might come.
    if is_text || endpoint.template() == "/v1/chat/completions" {
        call.answers = u32::try_from(answers).unwrap_or(u32::MAX).min(Call::MAX_ANSWERS);
    }
    call.max_output = members.max_output.map(|max| max.saturating_mul(answers));
    Ok((call, edits))
}

/// Whether the client asked for usage, and how to ask for it where it did not.
fn usage_edit(options: Option<&RawValue>, body: &[u8]) -> (bool, Option<Insertion>) {
    let Some(raw) = options else {
        // Right behind the opening brace; a comma may follow, since `stream` is a member, too.
        let brace = body.iter().position(|byte| *byte == b'{');
        return (false, brace.map(|at| Insertion { at: at + 1..at + 1, with: WHOLE_MEMBER }));
    };
    let Some(range) = range_of(raw, body) else { return (false, None) };
    if raw.get() == "null" {
        return (false, Some(Insertion { at: range, with: WHOLE_VALUE }));
    }
    // What is no object is the backend's to refuse.
    let Some(inside) = raw.get().strip_prefix('{') else { return (false, None) };
    let Ok(options) = serde_json::from_str::<StreamOptions<'_>>(raw.get()) else { return (false, None) };
    // Some servers send running totals with every event as soon as usage is asked for: more than one event to remove.
    if options.continuous_usage_stats.is_some_and(|value| value.get() != "false") {
        return (options.include_usage.is_some_and(|value| value.get() == "true"), None);
    }
    match options.include_usage {
        Some(value) if value.get() == "null" => {
            (false, range_of(value, body).map(|at| Insertion { at, with: ONLY_VALUE }))
        }
        Some(value) => (value.get() == "true", None),
        None => {
            let with = if inside.trim_start().starts_with('}') { ONLY_MEMBER } else { FIRST_MEMBER };
            (false, Some(Insertion { at: range.start + 1..range.start + 1, with }))
        }
    }
}

/// A value that is there, even if it is null.
fn even_null<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Whether it is a list with something in it.
fn is_filled(raw: &RawValue) -> bool {
    raw.get().strip_prefix('[').is_some_and(|inside| !inside.trim_ascii_start().starts_with(']'))
}

/// Where `raw` stands in `body`, of which it was read.
fn range_of(raw: &RawValue, body: &[u8]) -> Option<Range<usize>> {
    let start = (raw.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let end = start.checked_add(raw.get().len())?;
    (end <= body.len()).then_some(start..end)
}

/// A count as JSON has it: `100`, `100.0`; what is negative or no number bounds nothing.
fn count(raw: &RawValue) -> Option<u64> {
    let number: f64 = raw.get().parse().ok()?;
    (number >= 0.0).then_some(number as u64)
}

// === impl Members ===

impl<'a> Members<'a> {
    fn add(&mut self, endpoint: Endpoint, key: &str, value: &'a RawValue) {
        self.json_schema |= needs::is_shape(endpoint, key, value);
        match key {
            "model" => self.decide("model", value, |members| &mut members.model),
            "stream" => self.decide("stream", value, |members| &mut members.stream),
            "stream_options" => self.decide("stream_options", value, |members| &mut members.stream_options),
            "n" => self.n = count(value),
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "n_predict" => self.bound(count(value)),
            "options" | "parameters" => {
                if let Ok(options) = serde_json::from_str::<Options<'_>>(value.get()) {
                    self.bound(options.num_predict.and_then(count));
                    self.bound(options.max_new_tokens.and_then(count));
                }
            }
            "documents" | "texts" | "text_2" => self.documents = Some(value),
            "prompt" | "input" | "inputs" => {
                self.input = Some(value);
                self.prompt.add(key, value);
            }
            "messages" | "system" | "instructions" | "tools" | "functions" => self.prompt.add(key, value),
            // Ollama's, beside a prompt.
            "images" => self.images = is_filled(value),
            "user" => self.users.user = Some(value),
            "safety_identifier" => self.users.safety_identifier = Some(value),
            "prompt_cache_key" => self.users.prompt_cache_key = Some(value),
            "metadata" => self.users.metadata = Some(value),
            // Servers written in Go accept a key in any case, and the last one counts.
            _ => {
                if let Some(param) = DECIDING.into_iter().find(|param| folds_to(key, param)) {
                    self.misspelt = Some((param, key.to_owned()));
                    self.is_model_misspelt |= param == "model";
                }
            }
        }
    }

    fn decide(
        &mut self,
        param: &'static str,
        value: &'a RawValue,
        cell: impl FnOnce(&mut Self) -> &mut Option<&'a RawValue>,
    ) {
        if cell(self).replace(value).is_some() {
            self.duplicate = Some(param);
        }
    }

    /// Where several bounds are given, backends differ in which counts; the largest is the safe one to reserve by.
    fn bound(&mut self, max: Option<u64>) {
        self.max_output = self.max_output.max(max);
    }
}

/// Whether `key` is `param` but for the case of its letters, as Go folds them (a long s is an s).
fn folds_to(key: &str, param: &str) -> bool {
    key.chars().map(|char| if char == 'ſ' { 's' } else { char.to_ascii_lowercase() }).eq(param.chars())
}

// === impl Users ===

impl Users<'_> {
    /// Who it is, the narrowest first: what shares a `prompt_cache_key` shares its beginning, and clients that have one for
    /// each conversation send it there.
    fn name(&self, endpoint: Endpoint) -> Option<Arc<str>> {
        let metadata = self.metadata.filter(|_| endpoint.api() == Api::Anthropic);
        let metadata = metadata.and_then(|raw| serde_json::from_str::<Metadata<'_>>(raw.get()).ok());
        let user_id = metadata.and_then(|metadata| metadata.user_id);
        let all = [self.prompt_cache_key, self.user, self.safety_identifier, user_id];
        all.into_iter().flatten().find_map(|raw| {
            let Key(name) = serde_json::from_str(raw.get()).ok()?;
            (!name.is_empty()).then(|| name[..name.floor_char_boundary(MAX_USER)].into())
        })
    }
}

/// Reads the members of an object.
fn read(endpoint: Endpoint, body: &[u8]) -> Result<Members<'_>, serde_json::Error> {
    struct Object(Endpoint);

    impl<'de> Visitor<'de> for Object {
        type Value = Members<'de>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
            let mut members = Members::default();
            while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                members.add(self.0, &key, value);
            }
            Ok(members)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let members = deserializer.deserialize_map(Object(endpoint))?;
    deserializer.end()?;
    Ok(members)
}

#[cfg(test)]
mod tests;
