//! `routing.rules`: requests that go another way than the model alone would send them.

use std::collections::{BTreeMap, HashMap};

use http::HeaderName;
use llmproxy_core::{Endpoint, Pattern};
use serde::Deserialize;

use super::LoadBalance;

/// One entry of `routing.rules`. The first whose conditions a request meets decides; those after it are not looked at.
///
/// ```
/// use llmproxy_balancer::{MatchConfig, RoutingConfig, RuleConfig, validate_routing};
///
/// let long = RuleConfig {
///     name: Some("long".into()),
///     conditions: MatchConfig { min_prompt_tokens: Some(16_000), ..MatchConfig::default() },
///     group: Some("big".into()),
///     ..RuleConfig::default()
/// };
/// assert!(validate_routing(&RoutingConfig { rules: vec![long], ..RoutingConfig::default() }).is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RuleConfig {
    /// The name in the reasons that records give; its number in the list where none is given.
    pub name: Option<String>,
    /// What a request must be like. Without conditions every request is.
    #[serde(rename = "match")]
    pub conditions: MatchConfig,
    /// Only backends of this group are asked.
    pub group: Option<String>,
    /// The model, or an alias, in the place of the one that the request names.
    pub model: Option<String>,
    /// How a backend is chosen; as for all requests where nothing is said.
    pub load_balance: Option<LoadBalance>,
    /// Models that stand in, in this order, wherever they are served.
    pub fallbacks: Vec<String>,
}

/// `routing.rules[].match`: what a request must be like, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MatchConfig {
    /// The model that the client names.
    pub model: Option<Pattern>,
    /// The path.
    pub path: Option<Pattern>,
    /// What stands at the caller's key to route by.
    pub tag: Option<Pattern>,
    /// The prompt has so many tokens or more, estimated from its size.
    pub min_prompt_tokens: Option<u64>,
    /// The prompt has so many tokens or fewer.
    pub max_prompt_tokens: Option<u64>,
    /// Whether it offers tools to the model.
    pub tools: Option<bool>,
    /// Whether it has images in it.
    pub images: Option<bool>,
    /// Whether its answer must have a given JSON shape.
    pub json_schema: Option<bool>,
    /// Headers, each with what one of its values must be like.
    pub header: BTreeMap<String, Pattern>,
}

// === impl RuleConfig ===

impl RuleConfig {
    /// Its name, or what stands for it.
    pub(crate) fn label(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("#{}", index + 1))
    }
}

// === impl MatchConfig ===

impl MatchConfig {
    /// The conditions on text: the key of each and its pattern.
    fn patterns(&self) -> impl Iterator<Item = (String, &Pattern)> {
        let named = [("model", &self.model), ("path", &self.path), ("tag", &self.tag)];
        let named = named.into_iter().filter_map(|(key, pattern)| Some((key.to_owned(), pattern.as_ref()?)));
        named.chain(self.header.iter().map(|(name, pattern)| (format!("header.{name}"), pattern)))
    }

    /// Whether every request that meets `other` meets this. Not all such cases are seen, only those that are plain.
    fn covers(&self, other: &Self) -> bool {
        let fits = |ours: &Option<Pattern>, theirs: &Option<Pattern>| match (ours, theirs) {
            (None, _) => true,
            (Some(ours), Some(theirs)) => covers(ours, theirs),
            (Some(_), None) => false,
        };
        let same = |ours: Option<bool>, theirs: Option<bool>| ours.is_none() || ours == theirs;
        let header = |(name, ours): (&String, &Pattern)| {
            let theirs = other.header.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
            theirs.is_some_and(|(_, theirs)| covers(ours, theirs))
        };
        fits(&self.model, &other.model)
            && fits(&self.path, &other.path)
            && fits(&self.tag, &other.tag)
            && self.min_prompt_tokens.is_none_or(|ours| other.min_prompt_tokens.is_some_and(|theirs| ours <= theirs))
            && self.max_prompt_tokens.is_none_or(|ours| other.max_prompt_tokens.is_some_and(|theirs| theirs <= ours))
            && same(self.tools, other.tools)
            && same(self.images, other.images)
            && same(self.json_schema, other.json_schema)
            && self.header.iter().all(header)
    }
}

/// Whether `ours` stands for all that `theirs` does. A name is a pattern that stands for itself, and what fits with its
/// stars taken for letters fits whatever they stand for.
pub(super) fn covers(ours: &Pattern, theirs: &Pattern) -> bool {
    ours == theirs || ours.matches(theirs.as_str())
}

/// All mistakes in `routing.rules`: each the key's path below `routing`, and what is wrong with it.
pub(super) fn validate(rules: &[RuleConfig]) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut names: HashMap<&str, usize> = HashMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let mut wrong = |key: &str, message: String| mistakes.push((format!("rules[{index}]{key}"), message));
        let blank = |text: &Option<String>| text.as_deref().is_some_and(|text| text.trim().is_empty());
        for (key, text) in [(".name", &rule.name), (".group", &rule.group), (".model", &rule.model)] {
            if blank(text) {
                wrong(key, "is empty; write something, or leave it out".into());
            }
        }
        if let Some(name) = &rule.name
            && let Some(other) = names.insert(name, index)
        {
            wrong(".name", format!("`{name}` is also the name of rules[{other}]; give each a name of its own"));
        }
        for (position, model) in rule.fallbacks.iter().enumerate() {
            let key = format!(".fallbacks[{position}]");
            if model.trim().is_empty() {
                wrong(&key, "is empty; name a model, or leave it out".into());
            } else if rule.model.as_ref() == Some(model) || rule.fallbacks[..position].contains(model) {
                wrong(&key, format!("`{model}` has had its turn before; leave it out, or name another model"));
            }
        }
        let conditions = &rule.conditions;
        for (key, pattern) in conditions.patterns() {
            if pattern.as_str().trim().is_empty() && !key.starts_with("header.") {
                wrong(&format!(".match.{key}"), "is empty, which nothing is; write a pattern, or leave it out".into());
            }
        }
        if let Some(path) = conditions.path.as_ref().map(Pattern::as_str).filter(|path| !path.trim().is_empty()) {
            if !path.starts_with(['/', '*']) {
                wrong(".match.path", format!("no request fits: a path begins with a slash; write `/{path}`"));
            }
            if let Some((before, _)) = path.split_once(['?', '#']) {
                wrong(
                    ".match.path",
                    format!("no request fits: what follows a path is not looked at; write `{before}`"),
                );
            }
            if matches!(path, "/health" | "/ready" | "/metrics" | "/v1/models") {
                wrong(".match.path", "no request fits: the proxy answers this itself; leave the rule out".into());
            }
            // An operation under another spelling is refused before any rule is looked at.
            let plain = path.trim_end_matches('/');
            if plain != path && Endpoint::of(plain).is_known() {
                wrong(
                    ".match.path",
                    format!("no request fits: the path of this ends without a slash; write `{plain}`"),
                );
            }
        }
        for name in conditions.header.keys().filter(|name| name.parse::<HeaderName>().is_err()) {
            wrong(&format!(".match.header.{name}"), "is not a header name".into());
        }
        if let (Some(min), Some(max)) = (conditions.min_prompt_tokens, conditions.max_prompt_tokens)
            && min > max
        {
            wrong(
                ".match.max_prompt_tokens",
                format!("is less than `min_prompt_tokens`, which is {min}; no prompt is both"),
            );
        }
        if rule.group.is_none() && rule.model.is_none() && rule.load_balance.is_none() && rule.fallbacks.is_empty() {
            wrong("", "does nothing; give it a `group`, a `model`, `fallbacks` or `load_balance`".into());
        }
        let earlier = rules[..index].iter().position(|earlier| earlier.conditions.covers(conditions));
        if let Some(earlier) = earlier {
            let name = rules[earlier].label(earlier);
            wrong(
                ".match",
                format!(
                    "never decides: `{name}` (rules[{earlier}]) comes first and takes all of these; put this one before it"
                ),
            );
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<RuleConfig> {
        serde_json::from_str(text).unwrap()
    }

    fn check(text: &str, expected: &[&str]) {
        let found: Vec<String> = validate(&rules(text)).into_iter().map(|(key, _)| key).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn good_rules_are_good() {
        check(
            r#"[{"match":{"model":"auto","min_prompt_tokens":8000},"model":"big"},{"match":{"model":"auto"},"model":"small"},{"load_balance":"round_robin"}]"#,
            &[],
        );
        check(
            r#"[{"name":"a","match":{"header":{"X-Kind":"batch*"}},"group":"slow"},{"name":"b","match":{"tools":false},"group":"x"}]"#,
            &[],
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        check(
            r#"[{"name":" ","match":{"model":"","header":{"a b":"x"},"min_prompt_tokens":9,"max_prompt_tokens":8}},
                {"name":"x","match":{"tag":"a"},"group":"","model":"m","fallbacks":["m","","n","n"]},
                {"name":"x","match":{"tag":"b"},"load_balance":"round_robin"}]"#,
            &[
                "rules[0].name",
                "rules[0].match.model",
                "rules[0].match.header.a b",
                "rules[0].match.max_prompt_tokens",
                "rules[0]",
                "rules[1].group",
                "rules[1].fallbacks[0]",
                "rules[1].fallbacks[1]",
                "rules[1].fallbacks[3]",
                "rules[2].name",
            ],
        );
    }

    #[test]
    fn a_path_that_none_can_be_is_a_mistake() {
        let check = |path: &str, good: bool| {
            let text = format!(r#"[{{"match":{{"path":"{path}"}},"group":"a"}}]"#);
            check(&text, if good { &[] } else { &["rules[0].match.path"] });
        };
        for path in ["/v1/embeddings", "/v1/*", "*", "*/embeddings", "/v1/our-own/", "/v1/*/"] {
            check(path, true);
        }
        for path in ["v1/embeddings", "v1/*", "/v1/embeddings/", " ", "/v1/embeddings?user=1", "/health", "/v1/models"]
        {
            check(path, false);
        }
    }

    #[test]
    fn a_rule_behind_one_that_takes_all_of_its_requests_never_decides() {
        let check = |first: &str, second: &str, never: bool| {
            let text = format!(r#"[{{"match":{first},"group":"a"}},{{"match":{second},"group":"b"}}]"#);
            check(&text, if never { &["rules[1].match"] } else { &[] });
        };
        check("{}", r#"{"model":"m"}"#, true);
        check(r#"{"model":"m"}"#, "{}", false);
        check(r#"{"model":"gpt-*"}"#, r#"{"model":"gpt-4","tools":true}"#, true);
        check(r#"{"model":"gpt-*"}"#, r#"{"model":"gpt-4*"}"#, true);
        check(r#"{"model":"gpt-4*"}"#, r#"{"model":"gpt-*"}"#, false);
        check(r#"{"model":"gpt-4","tools":true}"#, r#"{"model":"gpt-4"}"#, false);
        check(r#"{"min_prompt_tokens":10}"#, r#"{"min_prompt_tokens":20}"#, true);
        check(r#"{"min_prompt_tokens":20}"#, r#"{"min_prompt_tokens":10}"#, false);
        check(r#"{"max_prompt_tokens":20}"#, r#"{"max_prompt_tokens":10}"#, true);
        check(r#"{"max_prompt_tokens":10}"#, r#"{"max_prompt_tokens":20}"#, false);
        check(r#"{"images":true}"#, r#"{"images":false}"#, false);
        check(r#"{"header":{"x-a":"*"}}"#, r#"{"header":{"X-A":"1","x-b":"2"}}"#, true);
        check(r#"{"header":{"x-a":"1"}}"#, r#"{"header":{"x-b":"1"}}"#, false);
    }
}
