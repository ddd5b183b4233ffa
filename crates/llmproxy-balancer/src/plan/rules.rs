//! Which rule decides where a request goes.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderName;
use llmproxy_core::{Needs, Pattern};

use super::Asked;
use crate::{config::RuleConfig, policy::Policy};

/// One rule, as it runs.
#[derive(Debug)]
pub(super) struct Rule {
    conditions: Conditions,
    /// What to say of a choice.
    pub(super) because: String,
    pub(super) group: Option<Arc<str>>,
    pub(super) model: Option<Arc<str>>,
    /// Each by the name that backends know it by.
    pub(super) fallbacks: Vec<Arc<str>>,
    pub(super) policy: Option<Arc<dyn Policy>>,
}

/// What is not known of a request meets no condition.
#[derive(Debug)]
struct Conditions {
    model: Option<Pattern>,
    path: Option<Pattern>,
    tag: Option<Pattern>,
    min_prompt_tokens: Option<u64>,
    max_prompt_tokens: Option<u64>,
    tools: Option<bool>,
    images: Option<bool>,
    json_schema: Option<bool>,
    headers: Vec<(HeaderName, Pattern)>,
}

// === impl Rule ===

impl Rule {
    pub(super) fn new(
        config: &RuleConfig,
        label: &str,
        fallbacks: Vec<Arc<str>>,
        policy: Option<Arc<dyn Policy>>,
    ) -> Self {
        let conditions = &config.conditions;
        Self {
            conditions: Conditions {
                model: conditions.model.clone(),
                path: conditions.path.clone(),
                tag: conditions.tag.clone(),
                min_prompt_tokens: conditions.min_prompt_tokens,
                max_prompt_tokens: conditions.max_prompt_tokens,
                tools: conditions.tools,
                images: conditions.images,
                json_schema: conditions.json_schema,
                headers: headers(&conditions.header),
            },
            because: format!("rule `{label}`"),
            group: config.group.as_deref().map(Into::into),
            model: config.model.as_deref().map(Into::into),
            fallbacks,
            policy,
        }
    }

    pub(super) fn takes(&self, asked: &Asked<'_>) -> bool {
        self.conditions.are_met_by(asked)
    }

    /// The one name that it is for, where it makes something of that name that backends need not know.
    pub(super) fn name(&self) -> Option<&str> {
        let name = self.conditions.model.as_ref().map(Pattern::as_str).filter(|name| !name.contains('*'));
        name.filter(|_| self.model.is_some() || !self.fallbacks.is_empty())
    }
}

// === impl Conditions ===

impl Conditions {
    fn are_met_by(&self, asked: &Asked<'_>) -> bool {
        let Asked { head, call, flow, .. } = asked;
        let fits = |pattern: &Option<Pattern>, text: Option<&str>| match pattern {
            None => true,
            Some(pattern) => text.is_some_and(|text| pattern.matches(text)),
        };
        let is = |wanted: Option<bool>, of: fn(&Needs) -> bool| {
            wanted.is_none_or(|wanted| call.is_some_and(|call| of(&call.needs) == wanted))
        };
        let tokens = call.map(|call| call.prompt_estimate);
        fits(&self.model, call.and_then(|call| call.model.as_deref()))
            && fits(&self.path, Some(head.uri.path()))
            && fits(&self.tag, flow.and_then(|flow| flow.tag.as_deref()))
            && self.min_prompt_tokens.is_none_or(|min| tokens.is_some_and(|tokens| tokens >= min))
            && self.max_prompt_tokens.is_none_or(|max| tokens.is_some_and(|tokens| tokens <= max))
            && is(self.tools, |needs| needs.tools)
            && is(self.images, |needs| needs.images)
            && is(self.json_schema, |needs| needs.json_schema)
            && self.headers.iter().all(|(name, pattern)| {
                // What is no text is no value that anyone could have written.
                let mut values = head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                values.any(|value| pattern.matches(value))
            })
    }
}

/// One that is not a header's name was refused when the configuration was read.
fn headers(config: &BTreeMap<String, Pattern>) -> Vec<(HeaderName, Pattern)> {
    config.iter().filter_map(|(name, pattern)| Some((name.parse().ok()?, pattern.clone()))).collect()
}
