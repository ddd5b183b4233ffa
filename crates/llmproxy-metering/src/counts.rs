//! Token counts as backends report them.

use std::num::NonZeroU64;

use llmproxy_core::TokenUsage;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What a backend said about tokens; any part of it may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) prompt: Option<u64>,
    pub(crate) completion: Option<u64>,
    cached: Part,
    reasoning: Part,
    // What was read from a cache or written to one, where it is not among the prompt's.
    read_apart: Part,
    written_apart: Part,
}

/// A count that may be missing, in half the memory: there are some of these for each open stream. One more than the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part(Option<NonZeroU64>);

/// What is more is no count. Sums of what is less, over all there will ever be, fit into a number.
const MAX_COUNT: u64 = 1 << 40;

/// OpenAI's object: chat and completions name the one pair, all that came later the other.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Usage {
    #[serde(deserialize_with = "count")]
    prompt_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    completion_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    total_tokens: Option<u64>,
    /// SGLang's, beside the others.
    #[serde(deserialize_with = "count")]
    cached_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens_details: Option<Details>,
    completion_tokens_details: Option<Details>,
    output_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(deserialize_with = "count")]
    cached_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    reasoning_tokens: Option<u64>,
}

/// llama.cpp's object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Timings {
    #[serde(deserialize_with = "count")]
    prompt_n: Option<u64>,
    #[serde(deserialize_with = "count")]
    cache_n: Option<u64>,
    #[serde(deserialize_with = "count")]
    predicted_n: Option<u64>,
}

// === impl Counts ===

impl Counts {
    /// Both of which all is made.
    pub(crate) fn new(prompt: u64, completion: u64) -> Self {
        Self { prompt: Some(prompt), completion: Some(completion), ..Self::default() }
    }

    /// The one alone.
    pub(crate) fn of_prompt(prompt: u64) -> Self {
        Self { prompt: Some(prompt), ..Self::default() }
    }

    /// The other alone.
    pub(crate) fn of_completion(completion: u64) -> Self {
        Self { completion: Some(completion), ..Self::default() }
    }

    /// Reads a `usage` object; `None` where it counts nothing that is known.
    pub(crate) fn of_usage(json: &[u8]) -> Option<Self> {
        let usage: Usage = serde_json::from_slice(json).ok()?;
        let total_less = |part: Option<u64>| Some(usage.total_tokens?.saturating_sub(part?));
        let prompt = usage.prompt_tokens.or(usage.input_tokens);
        let completion = usage.completion_tokens.or(usage.output_tokens);
        let prompt_details = usage.prompt_tokens_details.or(usage.input_tokens_details);
        let completion_details = usage.completion_tokens_details.or(usage.output_tokens_details);
        let counts = Self {
            prompt: prompt.or_else(|| total_less(completion)),
            completion: completion.or_else(|| total_less(prompt)),
            cached: Part::of(prompt_details.and_then(|details| details.cached_tokens).or(usage.cached_tokens)),
            reasoning: Part::of(completion_details.and_then(|details| details.reasoning_tokens)),
            ..Self::default()
        };
        (counts.prompt.is_some() || counts.completion.is_some()).then_some(counts)
    }

    /// Reads a `usage` object that has nothing but a total, of an operation that only reads.
    pub(crate) fn of_total(json: &[u8]) -> Option<Self> {
        let usage: Usage = serde_json::from_slice(json).ok()?;
        usage.total_tokens.map(Self::of_prompt)
    }

    /// Reads a `timings` object.
    pub(crate) fn of_timings(json: &[u8]) -> Option<Self> {
        let timings: Timings = serde_json::from_slice(json).ok()?;
        Some(Self {
            prompt: Some(timings.prompt_n?.saturating_add(timings.cache_n.unwrap_or(0))),
            completion: Some(timings.predicted_n?),
            cached: Part::of(timings.cache_n),
            ..Self::default()
        })
    }

    /// Counts of a prompt among which those are not that a cache was read or written for. `None` where nothing is counted.
    pub(crate) fn with_cache_apart(
        prompt: Option<u64>,
        read: Option<u64>,
        written: Option<u64>,
        completion: Option<u64>,
    ) -> Option<Self> {
        let (read_apart, written_apart) = (Part::of(read), Part::of(written));
        let counts = Self { prompt, completion, read_apart, written_apart, ..Self::default() };
        (counts != Self::default()).then_some(counts)
    }

    /// These, and of what they leave out the other's.
    pub(crate) fn or_else(self, other: Self) -> Self {
        self.with(other, |count, _| count)
    }

    /// Both together; what only one of them counts is that one's.
    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// Of each count the larger.
    pub(crate) fn max(self, other: Self) -> Self {
        self.with(other, u64::max)
    }

    /// So many times as much.
    pub(crate) fn times(self, times: u64) -> Self {
        self.with(self, |count, _| count.saturating_mul(times))
    }

    /// What is said of the prompt.
    pub(crate) fn prompt_alone(self) -> Self {
        Self { completion: None, reasoning: Part::default(), ..self }
    }

    /// The same, but for the prompt, of which the `other` knows.
    pub(crate) fn with_prompt_of(self, other: Self) -> Self {
        Self { completion: self.completion, reasoning: self.reasoning, ..other }
    }

    fn with(self, other: Self, both: impl Fn(u64, u64) -> u64) -> Self {
        let field = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(both(one, other)),
            _ => one.or(other),
        };
        let part = |one: Part, other: Part| Part::of(field(one.get(), other.get()));
        Self {
            prompt: field(self.prompt, other.prompt),
            completion: field(self.completion, other.completion),
            cached: part(self.cached, other.cached),
            reasoning: part(self.reasoning, other.reasoning),
            read_apart: part(self.read_apart, other.read_apart),
            written_apart: part(self.written_apart, other.written_apart),
        }
    }

    /// Whether all is zero: what some servers write into every event until they know better.
    pub(crate) fn is_zero(&self) -> bool {
        self.prompt.unwrap_or(0) == 0 && self.completion.unwrap_or(0) == 0
    }

    /// The whole, with what is missing taken from an estimate.
    pub(crate) fn or(&self, prompt: u64, completion: u64) -> TokenUsage {
        let prompt = self.prompt.map_or(prompt, |prompt| {
            let apart = [self.read_apart, self.written_apart].into_iter().filter_map(Part::get);
            apart.fold(prompt, u64::saturating_add)
        });
        let completion = self.completion.unwrap_or(completion);
        TokenUsage {
            prompt,
            completion,
            // Parts are no more than the whole, whatever a server says.
            cached: self.cached.get().or(self.read_apart.get()).map(|cached| cached.min(prompt)),
            reasoning: self.reasoning.get().map(|reasoning| reasoning.min(completion)),
        }
    }
}

// === impl Part ===

impl Part {
    fn of(count: Option<u64>) -> Self {
        Self(count.and_then(|count| NonZeroU64::new(count.saturating_add(1))))
    }

    fn get(self) -> Option<u64> {
        self.0.map(|count| count.get() - 1)
    }
}

/// A count, or nothing where there is anything else: one odd member must not cost us the others.
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(of_value(&Value::deserialize(deserializer)?))
}

/// Seconds, or nothing where there is anything else.
pub(crate) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(of_seconds(&Value::deserialize(deserializer)?))
}

/// So many seconds, begun ones included. Some servers write them as text.
pub(crate) fn of_seconds(value: &Value) -> Option<u64> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (seconds >= 0.0 && seconds.is_finite()).then(|| seconds.ceil() as u64)
}

/// A count that stands alone.
pub(crate) fn number(json: &[u8]) -> Option<u64> {
    of_value(&serde_json::from_slice(json).ok()?)
}

fn of_value(value: &Value) -> Option<u64> {
    let whole =
        value.as_u64().or_else(|| value.as_f64().filter(|number| *number >= 0.0).map(|number| number as u64))?;
    (whole <= MAX_COUNT).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, prompt: u64, completion: u64) {
        let counts = Counts::of_usage(json.as_bytes()).expect(json);
        assert_eq!((counts.prompt, counts.completion), (Some(prompt), Some(completion)), "{json}");
    }

    #[test]
    fn what_servers_report_is_read() {
        check(r#"{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7}"#, 5, 7);
        check(r#"{"prompt_tokens":5,"total_tokens":12}"#, 5, 7);
        check(r#"{"prompt_tokens":5,"total_tokens":5}"#, 5, 0);
        check(r#"{"completion_tokens":7.0,"prompt_tokens":5,"total_tokens":"many"}"#, 5, 7);
        check(r#"{"prompt_tokens":5,"completion_tokens":0,"prompt_tokens_details":null}"#, 5, 0);
    }

    #[test]
    fn details_are_read() {
        let json = br#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":3,"x":null},
            "completion_tokens_details":{"reasoning_tokens":2}}"#;
        let usage = Counts::of_usage(json).unwrap().or(0, 0);
        assert_eq!((usage.cached, usage.reasoning), (Some(3), Some(2)));
    }

    #[test]
    fn the_names_of_the_responses_api_mean_the_same() {
        let json = br#"{"input_tokens":5,"input_tokens_details":{"cached_tokens":3},"output_tokens":7,
            "output_tokens_details":{"reasoning_tokens":2},"total_tokens":12}"#;
        let usage = Counts::of_usage(json).unwrap().or(0, 0);
        assert_eq!((usage.prompt, usage.completion, usage.cached, usage.reasoning), (5, 7, Some(3), Some(2)));
    }

    #[test]
    fn what_counts_nothing_is_nothing() {
        for json in
            ["{}", "null", "[]", "{", r#"{"seconds":1}"#, r#"{"prompt_tokens":-1}"#, r#"{"prompt_tokens":1e30}"#]
        {
            assert_eq!(Counts::of_usage(json.as_bytes()), None, "{json}");
        }
    }

    #[test]
    fn timings_count_the_cached_part_of_the_prompt() {
        let counts = Counts::of_timings(br#"{"prompt_n":1,"cache_n":23,"predicted_n":9,"predicted_ms":1.5}"#).unwrap();
        assert_eq!((counts.prompt, counts.completion), (Some(24), Some(9)));
        assert_eq!(Counts::of_timings(b"{}"), None);
    }
}
