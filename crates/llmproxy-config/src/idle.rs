//! Keys that are written down and do nothing as things stand, since another one that they need is not there.

use figment::value::{Dict, Value};
use llmproxy_balancer::{Commit, LoadBalance};

use crate::{Config, Warning, tree};

/// What to say of them. `dict` is what was written, as far as it counts.
pub(crate) fn idle(dict: &Dict, config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |path: &str, message: &str| warnings.push(Warning::new(path, message));
    let is_written = |path: &[&str]| match tree::get(dict, path) {
        Some(Value::Dict(_, dict)) => !dict.is_empty(),
        value => value.is_some(),
    };
    let routing = &config.routing;

    if is_written(&["health_check", "expected_status"]) && config.health_check.path.is_none() {
        warn(
            "health_check.expected_status",
            "has no effect without `path`: any answer below 500 will do then; say where that status is expected",
        );
    }
    let mut bounds =
        config.backends.iter().map(|backend| backend.max_concurrent.is_some() || backend.max_tokens.is_some());
    // What is found may have bounds of its own.
    if is_written(&["queue"]) && !config.discovery.enabled && !bounds.any(|is_bounded| is_bounded) {
        warn(
            "queue",
            "has no effect: nobody waits where no backend has a bound; give some `max_concurrent` or `max_tokens`",
        );
    }
    let models = routing.models.values().filter_map(|model| model.load_balance);
    let rules = routing.rules.iter().filter_map(|rule| rule.load_balance);
    let policies: Vec<LoadBalance> = [routing.load_balance].into_iter().chain(models).chain(rules).collect();
    for (key, policy) in [("session", LoadBalance::Session), ("prefix_aware", LoadBalance::PrefixAware)] {
        if is_written(&["routing", key]) && !policies.contains(&policy) {
            let message = format!("has no effect: `load_balance` is nowhere `{key}`");
            warn(&format!("routing.{key}"), &message);
        }
    }
    if is_written(&["routing", "commit_after"]) && routing.commit == Commit::Head {
        warn("routing.commit_after", "has no effect without `commit: first_byte`");
    }
    if !routing.load_signals.enabled {
        for (index, _) in config.backends.iter().enumerate().filter(|(_, backend)| backend.metrics_path.is_some()) {
            let message =
                "has no effect: no backend is asked for its load while `routing.load_signals.enabled` is false";
            warn(&format!("backends[{index}].metrics_path"), message);
        }
    }
    if !config.auth.enabled {
        for (index, _) in routing.rules.iter().enumerate().filter(|(_, rule)| rule.conditions.tag.is_some()) {
            let message =
                "no request fits: tags are those of keys, and none is asked for while `auth.enabled` is false";
            warn(&format!("routing.rules[{index}].match.tag"), message);
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use crate::{LoadOptions, load_str};

    /// The paths of what is warned of.
    fn check(text: &str, expected: &[&str]) {
        let text = if text.contains("backends") {
            text.to_owned()
        } else {
            format!("{{backends: [{{url: 'http://a'}}], {text}}}")
        };
        let options = LoadOptions { variables: Some([].into()), ..LoadOptions::default() };
        let loaded = load_str(&text, &options).unwrap_or_else(|error| panic!("{text}: {error}"));
        let paths: Vec<&str> = loaded.warnings.iter().map(|warning| warning.path.as_str()).collect();
        assert_eq!(paths, expected, "{text}");
    }

    #[test]
    fn a_key_that_needs_another_is_told_of_where_that_is_not() {
        check("health_check: {expected_status: 204}", &["health_check.expected_status"]);
        check("health_check: {expected_status: 204, path: /up}", &[]);
        check("queue: {timeout: 5s}", &["queue"]);
        check("queue: {}", &[]);
        check("{backends: [{url: 'http://a', max_tokens: 9}], queue: {timeout: 5s}}", &[]);
        check("discovery: {enabled: true, sources: [{type: file, file: {path: x}}]}, queue: {timeout: 5s}", &[]);
        check("routing: {commit_after: 1s}", &["routing.commit_after"]);
        check("routing: {commit_after: 1s, commit: first_byte}", &[]);
        let backends = "backends: [{url: 'http://a'}, {url: 'http://b', metrics_path: /m}]";
        check(&format!("{{{backends}}}"), &[]);
        check(&format!("{{{backends}, routing: {{load_signals: {{enabled: no}}}}}}"), &["backends[1].metrics_path"]);
    }

    #[test]
    fn what_is_said_of_a_policy_that_nobody_has_is_told_of() {
        check("routing: {session: {load_factor: 2}}", &["routing.session"]);
        check("routing: {session: {load_factor: 2}, load_balance: session}", &[]);
        check("routing: {session: {load_factor: 2}, rules: [{load_balance: session}]}", &[]);
        check("routing: {prefix_aware: {cache_tokens: 9000}}", &[]);
        check("routing: {prefix_aware: {cache_tokens: 9000}, load_balance: random}", &["routing.prefix_aware"]);
        let models = "models: {m: {load_balance: prefix_aware}}";
        check(&format!("routing: {{prefix_aware: {{cache_tokens: 9000}}, load_balance: random, {models}}}"), &[]);
    }

    #[test]
    fn a_tag_is_told_of_where_nobody_has_one() {
        let routing =
            "routing: {rules: [{load_balance: random, match: {model: m}}, {load_balance: random, match: {tag: t}}]}";
        check(routing, &["routing.rules[1].match.tag"]);
        check(&format!("auth: {{enabled: true}}, {routing}"), &[]);
    }
}
