//! Which fields of a record's JSON are sent.

use std::collections::BTreeSet;

use llmproxy_core::nearest;

/// All that a record's JSON can have, in its order.
pub(crate) const NAMES: &[&str] = &[
    "attempts",
    "backend_url",
    "cached_tokens",
    "client_ip",
    "client_request_id",
    "completion_tokens",
    "completion_usage_source",
    "cost",
    "currency",
    "delivered_tokens",
    "end",
    "endpoint",
    "error",
    "is_stream",
    "key_fingerprint",
    "key_name",
    "latency_ms",
    "longest_gap_ms",
    "method",
    "model",
    "path",
    "prompt_tokens",
    "prompt_usage_source",
    "proxy_time_ms",
    "queue_time_ms",
    "reasoning_tokens",
    "request_body",
    "request_id",
    "route",
    "schema",
    "served_model",
    "status_code",
    "time_per_output_token_ms",
    "time_to_first_byte_ms",
    "time_to_first_token_ms",
    "timestamp",
    "tokens_per_second",
    "total_tokens",
    "units",
    "upstream_id",
    "usage",
    "usage_source",
    "user_id",
];

/// What no choice leaves out: without them a receiver can't tell copies, or what it reads.
const ALWAYS: &[&str] = &["request_id", "schema"];

/// The fields that one reporter sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// `None`: all of them.
    only: Option<BTreeSet<&'static str>>,
}

// === impl Fields ===

impl Fields {
    /// Those that the operator named, or all where none is; or which names are none, by their places in the list.
    pub(crate) fn compile(names: &[String]) -> Result<Self, Vec<(usize, String)>> {
        if names.is_empty() {
            return Ok(Self::default());
        }
        let mut only: BTreeSet<_> = ALWAYS.iter().copied().collect();
        let mut wrong = Vec::new();
        for (index, name) in names.iter().enumerate() {
            match NAMES.iter().find(|known| *known == name) {
                Some(known) => {
                    only.insert(*known);
                }
                None => wrong.push((index, unknown(name))),
            }
        }
        if wrong.is_empty() { Ok(Self { only: Some(only) }) } else { Err(wrong) }
    }

    /// Whether `name` is sent.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(name))
    }
}

fn unknown(name: &str) -> String {
    match nearest(name, NAMES.iter().copied()) {
        Some(near) => format!("`{name}` is not a field of a record; did you mean `{near}`?"),
        None => format!("`{name}` is not a field of a record; docs/usage-record.schema.json lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_tells_copies_is_always_there() {
        let fields = Fields::compile(&names(&["model"])).unwrap();
        assert!(fields.has("model") && fields.has("request_id") && fields.has("schema"));
        assert!(!fields.has("path"));
        assert!(Fields::compile(&[]).unwrap().has("path"));
    }

    #[test]
    fn a_misspelt_name_is_told_with_the_one_that_was_meant() {
        let wrong = Fields::compile(&names(&["model", "total_token", "api_key"])).unwrap_err();
        assert_eq!(wrong.len(), 2);
        assert_eq!(wrong[0], (1, "`total_token` is not a field of a record; did you mean `total_tokens`?".to_owned()));
        assert!(wrong[1].0 == 2 && wrong[1].1.contains("usage-record.schema.json"), "{wrong:?}");
    }
}
