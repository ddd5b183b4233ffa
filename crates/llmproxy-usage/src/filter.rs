//! Which records a reporter wants.

use llmproxy_core::{Pattern, UsageRecord};
use serde::Deserialize;

/// Which records a reporter is given: those that fit each list. A list without patterns fits all.
///
/// In a pattern `*` stands for any text; upper and lower case differ. What a record does not name is the empty text
/// there, so that only a pattern such as `*` fits it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FilterConfig {
    /// Models, as the client or the backend names them.
    pub models: Vec<Pattern>,
    /// Keys, by name or fingerprint.
    pub keys: Vec<Pattern>,
    /// Paths of the requests.
    pub paths: Vec<Pattern>,
    /// The users that the keys belong to.
    pub users: Vec<Pattern>,
}

/// A filter as it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter(FilterConfig);

// === impl FilterConfig ===

impl FilterConfig {
    /// The patterns that can't be meant, by their key.
    pub(crate) fn validate(&self) -> impl Iterator<Item = (String, String)> {
        let lists = [("models", &self.models), ("keys", &self.keys), ("paths", &self.paths), ("users", &self.users)];
        lists.into_iter().flat_map(|(key, patterns)| {
            patterns.iter().enumerate().filter(|(_, pattern)| pattern.as_str().is_empty()).map(move |(index, _)| {
                (format!("{key}[{index}]"), "is empty, so that next to nothing fits it; use * for any text".to_owned())
            })
        })
    }
}

// === impl Filter ===

impl Filter {
    pub(crate) fn compile(config: &FilterConfig) -> Self {
        Self(config.clone())
    }

    /// Whether the reporter is to be given `record`.
    pub(crate) fn wants(&self, record: &UsageRecord) -> bool {
        let Self(FilterConfig { models, keys, paths, users }) = self;
        fits(models, &[record.model.as_deref(), record.served_model.as_deref()])
            && fits(keys, &[record.key_name.as_deref(), record.key_fingerprint.as_deref()])
            && fits(paths, &[Some(&*record.path)])
            && fits(users, &[record.user_id.as_deref()])
    }
}

/// Whether one of `names` fits one of `patterns`, or there is nothing to fit.
fn fits(patterns: &[Pattern], names: &[Option<&str>]) -> bool {
    patterns.is_empty()
        || patterns.iter().any(|pattern| {
            let mut known = names.iter().copied().flatten().peekable();
            if known.peek().is_none() { pattern.matches("") } else { known.any(|name| pattern.matches(name)) }
        })
}

#[cfg(test)]
mod tests {
    use llmproxy_core::Endpoint;

    use super::*;

    #[test]
    fn a_record_is_wanted_where_each_list_has_something_that_fits() {
        let record = UsageRecord {
            model: Some("fast".into()),
            served_model: Some("qwen2.5-7b".into()),
            key_name: Some("alice".into()),
            key_fingerprint: Some("ab12".into()),
            user_id: None,
            ..UsageRecord::new(Endpoint::of("/v1/chat/completions"))
        };
        let check = |filter: serde_json::Value, expected: bool| {
            let config: FilterConfig = serde_json::from_value(filter.clone()).unwrap();
            assert_eq!(Filter::compile(&config).wants(&record), expected, "{filter}");
        };
        check(serde_json::json!({}), true);
        check(serde_json::json!({"models": ["fast"]}), true);
        check(serde_json::json!({"models": ["qwen*"]}), true);
        check(serde_json::json!({"models": ["llama*", "Fast"]}), false);
        check(serde_json::json!({"keys": ["ab12"]}), true);
        check(serde_json::json!({"keys": ["bob", "al*"]}), true);
        check(serde_json::json!({"keys": ["bob"]}), false);
        check(serde_json::json!({"paths": ["/v1/chat/*"]}), true);
        check(serde_json::json!({"paths": ["/v1/embeddings"]}), false);
        check(serde_json::json!({"users": ["*"]}), true);
        check(serde_json::json!({"users": ["u-1"]}), false);
        check(serde_json::json!({"models": ["fast"], "keys": ["bob"]}), false);
    }

    #[test]
    fn an_empty_pattern_is_a_mistake() {
        let filter = FilterConfig { keys: vec!["a".into(), "".into()], ..FilterConfig::default() };
        let keys: Vec<_> = filter.validate().map(|(key, _)| key).collect();
        assert_eq!(keys, ["keys[1]"]);
    }
}
