//! Which operation of which API a path names.
//!
//! The set is fixed, so that a label made of it can't be multiplied by clients.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An operation of an inference API, found by its path.
///
/// ```
/// use llmproxy_core::{Api, Endpoint};
///
/// let endpoint = Endpoint::of("/v1/chat/completions");
/// assert_eq!(endpoint.template(), "/v1/chat/completions");
/// assert_eq!(endpoint.api(), Api::OpenAi);
/// assert_eq!(Endpoint::of("/v1/anything/else").template(), "/v1/*");
/// assert_eq!(Endpoint::of("/etc/passwd").template(), "other");
/// ```
///
/// It is written as its template. One that this version does not know is read as a path that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    template: &'static str,
    api: Api,
    work: Work,
}

/// Whose conventions a path follows; decides the shape of our own errors and how usage is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI's, which vLLM, SGLang, TGI, llama.cpp and Ollama all offer.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Ollama's own under `/api`.
    Ollama,
    /// TGI's, vLLM's and llama.cpp's own paths at the root.
    Native,
    /// Ours: health, metrics, administration.
    Proxy,
}

/// What a backend does for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Chat: messages in, tokens out.
    Chat,
    /// Text completion: prompt in, tokens out.
    Completion,
    /// Text in, vectors out; no tokens come out.
    Embedding,
    /// Anything else that is forwarded.
    Other,
}

const TABLE: &[Endpoint] = &[
    at("/v1/chat/completions", Api::OpenAi, Work::Chat),
    // vLLM's: several conversations in one request.
    at("/v1/chat/completions/batch", Api::OpenAi, Work::Chat),
    at("/v1/completions", Api::OpenAi, Work::Completion),
    at("/v1/embeddings", Api::OpenAi, Work::Embedding),
    at("/v1/models", Api::OpenAi, Work::Other),
    at("/v1/responses", Api::OpenAi, Work::Chat),
    at("/v1/rerank", Api::OpenAi, Work::Other),
    at("/v1/score", Api::OpenAi, Work::Other),
    at("/v1/audio/transcriptions", Api::OpenAi, Work::Other),
    at("/v1/audio/translations", Api::OpenAi, Work::Other),
    at("/v1/audio/speech", Api::OpenAi, Work::Other),
    at("/v1/images/generations", Api::OpenAi, Work::Other),
    at("/v1/images/edits", Api::OpenAi, Work::Other),
    at("/v1/images/variations", Api::OpenAi, Work::Other),
    at("/v1/realtime", Api::OpenAi, Work::Other),
    at("/v1/moderations", Api::OpenAi, Work::Other),
    at("/v1/messages", Api::Anthropic, Work::Chat),
    at("/v1/messages/count_tokens", Api::Anthropic, Work::Other),
    at("/api/chat", Api::Ollama, Work::Chat),
    at("/api/generate", Api::Ollama, Work::Completion),
    at("/api/embed", Api::Ollama, Work::Embedding),
    at("/api/embeddings", Api::Ollama, Work::Embedding),
    at("/api/tags", Api::Ollama, Work::Other),
    at("/api/show", Api::Ollama, Work::Other),
    at("/api/ps", Api::Ollama, Work::Other),
    at("/api/version", Api::Ollama, Work::Other),
    at("/generate", Api::Native, Work::Completion),
    at("/generate_stream", Api::Native, Work::Completion),
    at("/completion", Api::Native, Work::Completion),
    at("/tokenize", Api::Native, Work::Other),
    at("/detokenize", Api::Native, Work::Other),
    at("/rerank", Api::Native, Work::Other),
    at("/score", Api::Native, Work::Other),
    at("/embed", Api::Native, Work::Embedding),
    at("/health", Api::Proxy, Work::Other),
    at("/ready", Api::Proxy, Work::Other),
    at("/metrics", Api::Proxy, Work::Other),
];

const ANY_V1: Endpoint = at("/v1/*", Api::OpenAi, Work::Other);
const OTHER: Endpoint = at("other", Api::OpenAi, Work::Other);

const fn at(template: &'static str, api: Api, work: Work) -> Endpoint {
    Endpoint { template, api, work }
}

// === impl Endpoint ===

impl Endpoint {
    /// The endpoint that `path` names, without its query. The path is compared as it was sent: `/v1/%63hat/completions`
    /// is none that is known.
    pub fn of(path: &str) -> Self {
        match TABLE.iter().find(|endpoint| endpoint.template == path) {
            Some(endpoint) => *endpoint,
            None if path.starts_with("/v1/") => ANY_V1,
            None => OTHER,
        }
    }

    /// The path as one of a fixed set of names, fit for a metric's label.
    pub fn template(&self) -> &'static str {
        self.template
    }

    /// Whose conventions the path follows.
    pub fn api(&self) -> Api {
        self.api
    }

    /// What the backend does there.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Whether what is done there is done with a model that the request may name. Behind TGI's own paths and the like a
    /// server has one, and needs no name for it; which server it is, the name decides there, too. Of a path that is not known
    /// the endpoint can't tell.
    pub fn takes_model(&self) -> bool {
        match self.api {
            Api::OpenAi | Api::Anthropic => self.is_known() && self.template != "/v1/models",
            Api::Ollama => !matches!(self.template, "/api/tags" | "/api/ps" | "/api/version"),
            Api::Native => true,
            Api::Proxy => false,
        }
    }

    /// Whether text may come out, of a length that nobody knows beforehand. Of a path that is not known it may.
    pub fn makes_text(&self) -> bool {
        match self.work {
            Work::Chat | Work::Completion => true,
            Work::Embedding => false,
            Work::Other => {
                !self.is_known()
                    || matches!(self.template, "/v1/audio/transcriptions" | "/v1/audio/translations" | "/v1/realtime")
            }
        }
    }

    /// Whether the path is in the table by its own name, rather than by a wildcard.
    pub fn is_known(&self) -> bool {
        *self != ANY_V1 && *self != OTHER
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.template)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for endpoint in TABLE.iter().chain([&ANY_V1, &OTHER]) {
            let json = serde_json::to_string(endpoint).expect("a string is JSON");
            assert_eq!(json, format!("\"{}\"", endpoint.template));
            assert_eq!(serde_json::from_str::<Endpoint>(&json).expect("a template"), *endpoint);
        }
    }

    #[test]
    fn what_another_version_knew_is_none_that_is_known() {
        let check = |json: &str, expected: Endpoint| {
            assert_eq!(serde_json::from_str::<Endpoint>(json).expect("a string"), expected);
        };
        check("\"/v1/telepathy\"", ANY_V1);
        check("\"/telepathy\"", OTHER);
    }
}
