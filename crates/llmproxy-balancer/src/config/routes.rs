//! What `routing` says of backends, against the backends that there are.

use llmproxy_core::{Pattern, nearest};

use super::{
    BackendConfig, FallbackConfig, RoutingConfig,
    models::{Named, addresses, aliases, resolve},
    rules::covers,
};
use crate::models::{Models, Serves};

/// What [`validate_routes`] finds: each the key's path below `routing`, and what is wrong or doubtful there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFindings {
    /// What can't be meant.
    pub mistakes: Vec<(String, String)>,
    /// What has no effect as things stand.
    pub warnings: Vec<(String, String)>,
}

struct Routes<'a> {
    backends: &'a [BackendConfig],
    /// The name and the URL of each.
    addresses: Vec<(String, String)>,
    complete: bool,
    found: RouteFindings,
}

/// Holds the groups, backends and models that `routing` names against `backends`. These are all that there are where
/// `complete`, so that a group which none of them has is a mistake.
///
/// ```
/// use llmproxy_balancer::{BackendConfig, RoutingConfig, RuleConfig, validate_routes};
///
/// let rule = RuleConfig { group: Some("bgi".into()), ..RuleConfig::default() };
/// let routing = RoutingConfig { rules: vec![rule], ..RoutingConfig::default() };
/// let backends = [BackendConfig { group: Some("big".into()), ..BackendConfig::new("http://a") }];
/// assert_eq!(validate_routes(&backends, &routing, true).mistakes[0].0, "rules[0].group");
/// ```
pub fn validate_routes(backends: &[BackendConfig], routing: &RoutingConfig, complete: bool) -> RouteFindings {
    let found = RouteFindings::default();
    let mut routes = Routes { backends, addresses: addresses(backends), complete, found };
    routes.rules(routing);
    for (alias, model) in &routing.model_mapping {
        routes.served(&format!("model_mapping.{alias}"), model, |_| true, "");
    }
    for (name, entry) in &routing.models {
        let to = entry.to.as_ref().unwrap_or(name);
        let key = if entry.to.is_some() { format!("models.{name}.to") } else { format!("models.{name}") };
        routes.served(&key, to, |_| true, "");
        for (position, model) in entry.fallbacks.iter().enumerate() {
            routes.served(&format!("models.{name}.fallbacks[{position}]"), model, |_| true, "");
        }
    }
    routes.fallbacks(routing);
    routes.found
}

// === impl Routes ===

impl Routes<'_> {
    fn rules(&mut self, routing: &RoutingConfig) {
        let aliases = aliases(routing);
        for (index, rule) in routing.rules.iter().enumerate() {
            let group = rule.group.as_deref();
            let in_group = |config: &BackendConfig| group.is_none() || config.group.as_deref() == group;
            if let Some(group) = group
                && !self.backends.iter().any(in_group)
            {
                self.no_group(index, group);
            } else {
                let mut of_group = self.backends.iter().filter(|config| in_group(config));
                if let Some(group) = group
                    && self.complete
                    && of_group.all(|config| config.weight == 0)
                {
                    let message =
                        format!("every backend of the group `{group}` has weight 0, so that none gets these requests");
                    self.found.warnings.push((format!("rules[{index}].group"), message));
                }
                let of_group = group.map(|group| format!(" of the group `{group}`")).unwrap_or_default();
                let named = rule.conditions.model.as_ref().map(Pattern::as_str).filter(|name| !name.contains('*'));
                // A name that only a group is given for must be one that it has.
                let target = match (&rule.model, group, named) {
                    (Some(model), ..) => Some((format!("rules[{index}].model"), model.as_str())),
                    (None, Some(_), Some(named)) => Some((format!("rules[{index}].group"), named)),
                    _ => None,
                };
                if let Some((key, model)) = target {
                    self.served(&key, aliases.get(model).unwrap_or(&model), in_group, &of_group);
                }
            }
            for (position, model) in rule.fallbacks.iter().enumerate() {
                let model = aliases.get(model.as_str()).unwrap_or(&model.as_str()).to_owned();
                self.served(&format!("rules[{index}].fallbacks[{position}]"), model, |_| true, "");
            }
        }
    }

    fn no_group(&mut self, index: usize, group: &str) {
        if !self.complete {
            return;
        }
        let groups = self.backends.iter().filter_map(|config| config.group.as_deref());
        let near = nearest(group, groups);
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "give it to some, as `backends[].group`".to_owned(),
        };
        self.found
            .mistakes
            .push((format!("rules[{index}].group"), format!("no backend is of the group `{group}`; {hint}")));
    }

    fn fallbacks(&mut self, routing: &RoutingConfig) {
        let aliases = aliases(routing);
        for (index, entry) in routing.fallback.iter().enumerate() {
            let primary = entry.primary.iter().map(|name| (format!("fallback[{index}].primary"), name));
            let others = entry.fallback.iter().enumerate();
            let others = others.map(|(at, name)| (format!("fallback[{index}].fallback[{at}]"), name));
            for (key, name) in primary.chain(others) {
                let backends = self.addresses.iter().map(|(name, url)| (name.as_str(), url.clone()));
                let message = match resolve(name, backends) {
                    Named::Backend(_) if self.lists(name) || routing.models.contains_key(name) => {
                        format!(
                            "`{name}` is a backend and a model; name the backend by its URL, or give it another name"
                        )
                    }
                    Named::Several => format!("several backends are at `{name}`; name one of them"),
                    Named::NoBackend if self.complete => {
                        format!("no backend is at `{name}`; write the URL as it stands under `backends`, or a name")
                    }
                    // Else what the entry is for would change as backends come and go.
                    Named::Model(_)
                        if !self.complete
                            && entry.models.is_empty()
                            && entry.primary.as_ref() == Some(name)
                            && !self.lists(name)
                            && !routing.models.contains_key(name)
                            && !aliases.contains_key(name.as_str()) =>
                    {
                        format!(
                            "`{name}` may be a model, or a backend that is yet to be found; write which `models` this entry is for, \
                             [\"*\"] for all"
                        )
                    }
                    Named::Model(model) if !aliases.contains_key(name.as_str()) => {
                        self.served(&key, &model, |_| true, "");
                        continue;
                    }
                    _ => continue,
                };
                self.found.mistakes.push((key, message));
            }
        }
        let models: Vec<Option<Vec<Pattern>>> = routing.fallback.iter().map(|entry| self.is_for(entry)).collect();
        for (index, theirs) in models.iter().enumerate().filter_map(|(index, models)| Some((index, models.as_ref()?))) {
            // One for no model in particular is also for requests that name none.
            let takes_all = |ours: &Vec<Pattern>| {
                let takes = |model: &Pattern| ours.iter().any(|pattern| covers(pattern, model));
                ours.is_empty() || (!theirs.is_empty() && theirs.iter().all(takes))
            };
            if let Some(earlier) = models[..index].iter().position(|models| models.as_ref().is_some_and(takes_all)) {
                let message = format!(
                    "never counts: fallback[{earlier}] comes first and takes all of these; put this one before it"
                );
                self.found.mistakes.push((format!("fallback[{index}]"), message));
            }
        }
    }

    /// The models that an entry of `routing.fallback` is for, an empty list where it is for all; `None` where that is open,
    /// since what it names may be a backend that will be found, or a model.
    fn is_for(&self, entry: &FallbackConfig) -> Option<Vec<Pattern>> {
        let backends = self.addresses.iter().map(|(name, url)| (name.as_str(), url.clone()));
        match entry.primary.as_ref().filter(|_| entry.models.is_empty()).map(|name| resolve(name, backends)) {
            Some(Named::Model(_)) if !self.complete => None,
            Some(Named::Model(model)) => Some(vec![Pattern::new(model)]),
            _ => Some(entry.models.clone()),
        }
    }

    /// Whether a backend is said to serve `model`.
    fn lists(&self, model: &str) -> bool {
        self.backends.iter().any(|config| Models::configured(&config.models).serves(model) == Serves::ByName)
    }

    /// Warns where it is plain that no backend among those that `among` says serves `model`.
    fn served(&mut self, key: &str, model: &str, among: impl Fn(&BackendConfig) -> bool, of_group: &str) {
        let none = |config: &&BackendConfig| {
            !config.models.is_empty() && Models::configured(&config.models).serves(model) == Serves::No
        };
        let mut among = self.backends.iter().filter(|config| among(config)).peekable();
        if self.complete && among.peek().is_some() && among.all(|config| none(&config)) {
            let message = format!("no backend{of_group} has `{model}` among its models");
            self.found.warnings.push((key.to_owned(), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, group: Option<&str>, models: &[&str]) -> BackendConfig {
        BackendConfig {
            name: Some(name.into()),
            group: group.map(Into::into),
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            ..BackendConfig::new(format!("http://{name}"))
        }
    }

    fn backends() -> [BackendConfig; 3] {
        [
            backend("a", Some("big"), &["qwen-32b"]),
            backend("b", Some("small"), &["qwen-7b", "both"]),
            backend("both", None, &["qwen-7b"]),
        ]
    }

    fn check(text: &str, mistakes: &[&str], warnings: &[&str]) {
        let backends = backends();
        let routing = serde_json::from_str(text).unwrap();
        let found = validate_routes(&backends, &routing, true);
        let keys = |found: &[(String, String)]| found.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        assert_eq!((keys(&found.mistakes), keys(&found.warnings)), {
            let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
            (owned(mistakes), owned(warnings))
        });
        // Where more backends may be found, nothing is sure.
        let open = validate_routes(&backends, &routing, false);
        assert!(open.warnings.is_empty(), "{open:?}");
    }

    #[test]
    fn groups_that_nobody_is_of_are_mistakes_and_models_that_nobody_has_are_doubtful() {
        check(r#"{"rules":[{"group":"bgi"},{"group":"big","model":"qwen-32b"}]}"#, &["rules[0].group"], &[]);
        check(r#"{"rules":[{"group":"big","model":"qwen-7b"}]}"#, &[], &["rules[0].model"]);
        check(r#"{"rules":[{"match":{"model":"qwen-7b"},"group":"big"}]}"#, &[], &["rules[0].group"]);
        check(
            r#"{"rules":[{"match":{"model":"qwen-*"},"group":"big","fallbacks":["x"]}]}"#,
            &[],
            &["rules[0].fallbacks[0]"],
        );
        check(
            r#"{"model_mapping":{"al":"qwen-32b"},"rules":[{"match":{"model":"al"},"group":"big","fallbacks":["al"]}]}"#,
            &[],
            &[],
        );
        check(
            r#"{"model_mapping":{"m":"x"},"models":{"n":{"to":"qwen-7b","fallbacks":["y"]},"z":{"fallbacks":["qwen-7b"]}}}"#,
            &[],
            &["model_mapping.m", "models.n.fallbacks[0]", "models.z"],
        );
    }

    #[test]
    fn what_a_fallback_names_must_be_one_thing() {
        check(r#"{"fallback":[{"primary":"a","fallback":["http://b/v1","qwen-7b"]}]}"#, &[], &[]);
        check(
            r#"{"fallback":[{"primary":"both","fallback":["http://c","z"]}]}"#,
            &["fallback[0].primary", "fallback[0].fallback[0]"],
            &["fallback[0].fallback[1]"],
        );
    }

    #[test]
    fn with_discovery_a_fallback_says_what_it_is_for() {
        for (entry, is_clear) in [
            (r#"{"primary":"gpu-9","fallback":["a"]}"#, false),
            (r#"{"models":["*"],"primary":"gpu-9","fallback":["a"]}"#, true),
            (r#"{"primary":"a","fallback":["gpu-9"]}"#, true),
            (r#"{"primary":"http://c","fallback":["a"]}"#, true),
            (r#"{"primary":"qwen-7b","fallback":["a"]}"#, true),
        ] {
            let routing = serde_json::from_str(&format!(r#"{{"fallback":[{entry}]}}"#)).unwrap();
            let found = validate_routes(&backends(), &routing, false);
            let keys: Vec<&str> = found.mistakes.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, if is_clear { &[][..] } else { &["fallback[0].primary"] }, "{entry}: {found:?}");
        }
    }

    #[test]
    fn a_fallback_behind_one_that_takes_all_of_its_requests_never_counts() {
        check(r#"{"fallback":[{"fallback":["a"]},{"models":["qwen*"],"fallback":["b"]}]}"#, &["fallback[1]"], &[]);
        check(
            r#"{"fallback":[{"primary":"a","fallback":["b"]},{"primary":"b","fallback":["a"]}]}"#,
            &["fallback[1]"],
            &[],
        );
        check(
            r#"{"fallback":[{"models":["qwen*"],"fallback":["a"]},{"models":["qwen-7b"],"fallback":["b"]}]}"#,
            &["fallback[1]"],
            &[],
        );
        check(
            r#"{"fallback":[{"primary":"qwen-7b","fallback":["a"]},{"models":["qwen-7b"],"fallback":["b"]}]}"#,
            &["fallback[1]"],
            &[],
        );
        check(
            r#"{"fallback":[{"models":["qwen-7b"],"fallback":["a"]},{"models":["qwen*"],"fallback":["b"]}]}"#,
            &[],
            &[],
        );
        // A request that names no model is for the second one.
        check(r#"{"fallback":[{"models":["*"],"fallback":["a"]},{"fallback":["b"]}]}"#, &[], &[]);
    }

    #[test]
    fn a_group_without_weight_is_doubtful() {
        let routing = serde_json::from_str(r#"{"rules":[{"group":"big"}]}"#).unwrap();
        let warnings = |weight: u32, complete: bool| {
            let big = BackendConfig { weight: 0, ..backend("a", Some("big"), &[]) };
            let other = BackendConfig { weight, ..backend("b", Some("big"), &[]) };
            validate_routes(&[big, other, backend("c", None, &[])], &routing, complete).warnings.len()
        };
        assert_eq!((warnings(0, true), warnings(1, true), warnings(0, false)), (1, 0, 0));
    }

    #[test]
    fn a_backend_that_tells_its_models_itself_may_have_any() {
        let routing = serde_json::from_str(r#"{"model_mapping":{"m":"x"}}"#).unwrap();
        let backends = [backend("a", None, &["y"]), BackendConfig::new("http://b")];
        assert_eq!(validate_routes(&backends, &routing, true), RouteFindings::default());
    }
}
