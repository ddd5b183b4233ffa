//! Which models a backend serves, as far as it says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Deserialize;

/// llama-server has one model and answers to every name; it says so by this owner.
const ANSWERS_TO_ANY_NAME: &str = "llamacpp";
/// Ollama's tag for a model without one.
const DEFAULT_TAG: &str = ":latest";

/// A model that clients may ask for, as `/v1/models` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name to ask for: a backend's model, an alias, or a name that a rule is for.
    pub id: String,
    /// The names of the backends that serve it.
    pub backends: Vec<Arc<str>>,
    /// When it was made, in seconds since 1970, where a backend says so.
    pub created: Option<i64>,
    /// Whose it is, where a backend says so.
    pub owned_by: Option<String>,
}

/// What one backend serves.
#[derive(Clone, Debug, Default)]
pub(crate) enum Models {
    /// It has not been asked yet, or could not be.
    #[default]
    Unknown,
    /// These.
    Listed(BTreeMap<String, Entry>),
    /// Whatever it is asked for; the entries are only to be shown.
    Any(BTreeMap<String, Entry>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) created: Option<i64>,
    pub(crate) owned_by: Option<String>,
}

/// Whether a backend serves a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    /// It lists the model.
    ByName,
    /// It takes every name, this one too.
    AnyName,
    No,
    Unknown,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    created: Option<serde_json::Number>,
    owned_by: Option<String>,
}

// === impl ModelInfo ===

impl ModelInfo {
    /// Its other name, where it has one: Ollama takes a name without a tag for the one that is tagged `latest`.
    ///
    /// ```
    /// use llmproxy_balancer::ModelInfo;
    ///
    /// let model = ModelInfo { id: "llama3:latest".into(), ..ModelInfo::default() };
    /// assert_eq!(model.untagged(), Some("llama3"));
    /// ```
    pub fn untagged(&self) -> Option<&str> {
        self.id.strip_suffix(DEFAULT_TAG).filter(|name| !name.is_empty())
    }
}

// === impl Models ===

impl Models {
    /// What a configuration names.
    pub(crate) fn configured(names: &[String]) -> Self {
        Self::Listed(names.iter().map(|name| (name.clone(), Entry::default())).collect())
    }

    /// What an answer of `/v1/models` says; `None` where the backend could not tell (it is still loading, say).
    pub(crate) fn read(answer: &Response<Bytes>) -> Option<Self> {
        if answer.status().is_server_error() || answer.status() == StatusCode::TOO_MANY_REQUESTS {
            return None;
        }
        if !answer.status().is_success() {
            return Some(Self::any());
        }
        let Ok(list) = serde_json::from_slice::<List>(answer.body()) else { return Some(Self::any()) };
        if list.data.is_empty() {
            // Many say so before they have loaded what they are for: what is asked for is theirs to refuse.
            return Some(Self::any());
        }
        let any = list.data.iter().any(|model| model.owned_by.as_deref() == Some(ANSWERS_TO_ANY_NAME));
        let entries = list
            .data
            .into_iter()
            .map(|Model { id, created, owned_by }| {
                (id, Entry { created: created.and_then(|seconds| seconds.as_i64()), owned_by })
            })
            .collect();
        Some(if any { Self::Any(entries) } else { Self::Listed(entries) })
    }

    /// A backend without a list.
    pub(crate) fn any() -> Self {
        Self::Any(BTreeMap::new())
    }

    /// Whether the backend serves `model`.
    pub(crate) fn serves(&self, model: &str) -> Serves {
        match self {
            Self::Unknown => Serves::Unknown,
            Self::Listed(entries) | Self::Any(entries) if lists(entries, model) => Serves::ByName,
            Self::Any(_) => Serves::AnyName,
            Self::Listed(_) => Serves::No,
        }
    }

    /// Whether `model` is one of its own, as far as it can be told: it lists it, or there is no list to look at.
    pub(crate) fn may_own(&self, model: &str) -> bool {
        match self {
            Self::Unknown => true,
            Self::Any(entries) if entries.is_empty() => true,
            Self::Listed(entries) | Self::Any(entries) => lists(entries, model),
        }
    }

    /// What it says of `model`.
    pub(crate) fn entry(&self, model: &str) -> Option<&Entry> {
        match self {
            Self::Unknown => None,
            Self::Listed(entries) | Self::Any(entries) => {
                entries.get(model).or_else(|| entries.get(&format!("{model}{DEFAULT_TAG}")))
            }
        }
    }

    /// What to show.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        match self {
            Self::Unknown => None,
            Self::Listed(entries) | Self::Any(entries) => Some(entries),
        }
        .into_iter()
        .flatten()
    }

    /// The names, for comparing.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.entries().map(|(name, _)| name.as_str()).collect()
    }
}

fn lists(entries: &BTreeMap<String, Entry>, model: &str) -> bool {
    entries.contains_key(model) || entries.contains_key(&format!("{model}{DEFAULT_TAG}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &'static str) -> Option<Models> {
        Models::read(&Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap())
    }

    #[test]
    fn a_list_is_read() {
        let models = read(200, r#"{"object":"list","data":[{"id":"qwen","created":17,"owned_by":"vllm"}]}"#).unwrap();
        assert_eq!(models.serves("qwen"), Serves::ByName);
        assert_eq!(models.serves("llama"), Serves::No);
        let (_, entry) = models.entries().next().unwrap();
        assert_eq!(*entry, Entry { created: Some(17), owned_by: Some("vllm".into()) });
    }

    #[test]
    fn a_name_without_a_tag_is_the_latest() {
        let models = read(200, r#"{"data":[{"id":"llama3:latest"},{"id":"qwen:7b"}]}"#).unwrap();
        assert_eq!(models.serves("llama3"), Serves::ByName);
        assert_eq!(models.serves("llama3:latest"), Serves::ByName);
        assert_eq!(models.serves("qwen"), Serves::No);
    }

    #[test]
    fn llama_server_answers_to_every_name_and_shows_its_own() {
        let models = read(200, r#"{"models":[],"data":[{"id":"tiny.gguf","owned_by":"llamacpp"}]}"#).unwrap();
        assert_eq!(models.serves("anything"), Serves::AnyName);
        assert_eq!(models.serves("tiny.gguf"), Serves::ByName);
        assert_eq!(models.names(), ["tiny.gguf"].into());
    }

    #[test]
    fn a_backend_without_a_readable_list_accepts_every_name() {
        for (status, body) in [(404, ""), (401, ""), (200, "hello"), (200, r#"{"data":{}}"#), (200, r#"{"data":[]}"#)] {
            assert_eq!(read(status, body).unwrap().serves("x"), Serves::AnyName, "{status} {body}");
        }
    }

    #[test]
    fn a_backend_that_can_not_tell_now_stays_unknown() {
        assert!(read(503, "").is_none() && read(429, "").is_none());
        assert_eq!(Models::Unknown.serves("x"), Serves::Unknown);
    }
}
