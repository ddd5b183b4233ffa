//! The facts that parts tell each other through the exchange.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, ops::Range, sync::Arc, time::Duration};

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::{Backend, Endpoint, Units};

/// Who is calling. Written by auth; never holds a secret.
///
/// ```
/// let caller = llmproxy_core::Caller::named("alice").with_user_id("u-1");
/// assert!(caller.may_use("any-model"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Caller {
    name: Option<Arc<str>>,
    user_id: Option<Arc<str>>,
    fingerprint: Option<Arc<str>>,
    masked_key: Option<Arc<str>>,
    allowed_models: Option<Arc<BTreeSet<String>>>,
    on_abort: Option<OnAbort>,
    tag: Option<Arc<str>>,
}

/// What a client is billed that leaves before the end of its answer, and what becomes of the rest.
///
/// ```
/// use llmproxy_core::OnAbort;
///
/// assert_eq!(OnAbort::from_name("drain"), Some(OnAbort::Drain));
/// assert_eq!(OnAbort::default().as_str(), "delivered");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnAbort {
    /// What was handed to its connection; the backend is told to stop.
    #[default]
    Delivered,
    /// All that the backend made: it may finish, within bounds, and is asked what it came to.
    Drain,
}

/// The connection that a request came by. Written by the server.
///
/// ```
/// use llmproxy_core::{Exchange, Hop};
///
/// let exchange = Exchange::new();
/// exchange.set_hop(Hop { ip: [10, 0, 0, 1].into(), tls: true, trusted: false });
/// assert!(exchange.hop().is_some_and(|hop| hop.tls));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The address at its other end: the client's own, or that of the last proxy before us.
    pub ip: IpAddr,
    /// Whether it was encrypted.
    pub tls: bool,
    /// Whether what it says of those before it is believed, because the configuration says so.
    pub trusted: bool,
}

/// What is asked for. Written by inspect.
///
/// ```
/// use llmproxy_core::{Call, Endpoint};
///
/// let call = Call { stream: true, ..Call::new(Endpoint::of("/v1/chat/completions")) };
/// assert!(call.model.is_none() && call.stream);
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    /// The operation.
    pub endpoint: Endpoint,
    /// The model that the request names, if it names one.
    pub model: Option<Arc<str>>,
    /// Whether it is done with a model, so that a caller who may use certain ones only must name one.
    pub takes_model: bool,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Whether the client itself asked for a usage event at the end of its stream.
    pub asked_usage: bool,
    /// Bytes of the request's body, where it was read.
    pub body_bytes: u64,
    /// How long its body took to come, where it was read.
    pub read_time: Duration,
    /// Tokens of the prompt, estimated from its size; nothing here has read a token.
    pub prompt_estimate: u64,
    /// How many answers are asked for at a time, from 1 to [`Call::MAX_ANSWERS`]: OpenAI's `n`, of each prompt where
    /// `/v1/completions` has a list of them. Other operations give one.
    pub answers: u32,
    /// The largest number of tokens that the answer may have, over all its choices, where the request bounds it.
    pub max_output: Option<u64>,
    /// How much is asked for, where it is not measured in tokens.
    pub units: Option<Units>,
    /// Whom the request says that it is for, where it says so: what has the same name belongs together. The first of
    /// `prompt_cache_key`, `user` and `safety_identifier`, or Anthropic's `metadata.user_id`; no more than 512 bytes of it.
    pub user: Option<Arc<str>>,
    /// Where in its body the prompt stands, where it was read and has one.
    pub prompt: Option<Prompt>,
    /// What the model must be able to do.
    pub needs: Needs,
}

/// Where in a body the prompt stands, in bytes from the body's start.
///
/// ```
/// let body = r#"{"messages":[{"role":"user","content":"hi"}],"model":"m"}"#;
/// let prompt = llmproxy_core::Prompt { before: [None, None], text: 12..44, opening: 12..43 };
/// assert_eq!(&body[prompt.text], r#"[{"role":"user","content":"hi"}]"#);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// What a chat's template puts before the messages: the tools, and what the system says outside of the messages.
    pub before: [Option<Range<usize>>; 2],
    /// The messages, or the text to complete or to embed.
    pub text: Range<usize>,
    /// Of the text, all up to the end of the user's first message: it tells one conversation from another.
    pub opening: Range<usize>,
}

/// What a request asks of its model besides text.
///
/// ```
/// let needs = llmproxy_core::Needs { tools: true, ..Default::default() };
/// assert!(!needs.images);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// It may call tools.
    pub tools: bool,
    /// It is shown images.
    pub images: bool,
    /// It must answer in a given JSON shape.
    pub json_schema: bool,
}

/// The stream of requests that a request belongs to, as far as whoever orders and routes requests may know it. Written by
/// the rate limit.
///
/// ```
/// let flow = llmproxy_core::FlowKey { tag: Some("batch".into()) };
/// assert_eq!(flow.tag.as_deref(), Some("batch"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// What the operator has written at the caller's key to route by; it means nothing else.
    pub tag: Option<Arc<str>>,
}

/// Where one attempt goes and in what form. Left in the request's extensions by the balancer, for each attempt anew.
///
/// ```
/// use std::sync::Arc;
/// use llmproxy_core::{Backend, Target};
///
/// let backend = Arc::new(Backend::new("http://vllm:8000")?);
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(Target { backend, model: Some("qwen2.5-32b".into()), inject_usage: true });
/// # Ok::<(), llmproxy_core::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub backend: Arc<Backend>,
    /// The model's name there, where it differs from the one that the client used.
    pub model: Option<Arc<str>>,
    /// Whether to ask the backend for a usage event that the client did not ask for.
    pub inject_usage: bool,
}

/// One try at one backend.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The server that was asked.
    pub backend: Arc<Backend>,
    /// Why this one, in words.
    pub reason: Cow<'static, str>,
    /// When it was, on tokio's clock.
    pub began: tokio::time::Instant,
    /// The status of its answer, once it answered.
    pub status: Option<StatusCode>,
    /// What went wrong instead, in words.
    pub error: Option<Arc<str>>,
}

// === impl Caller ===

impl Caller {
    /// Nobody in particular: authentication is off or the path is exempt.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A caller of that name.
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// Sets the user that the key belongs to.
    pub fn with_user_id(mut self, user_id: impl Into<Arc<str>>) -> Self {
        self.user_id = Some(user_id.into());
        self
    }

    /// Sets what identifies the key without giving it away.
    pub fn with_fingerprint(mut self, fingerprint: impl Into<Arc<str>>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Sets the key as a log may show it, `abcd***wxyz`.
    pub fn with_masked_key(mut self, masked: impl Into<Arc<str>>) -> Self {
        self.masked_key = Some(masked.into());
        self
    }

    /// Restricts the caller to these models.
    pub fn with_allowed_models(mut self, models: impl IntoIterator<Item = String>) -> Self {
        self.allowed_models = Some(Arc::new(models.into_iter().collect()));
        self
    }

    /// Shares a set of models built before, so that a request copies nothing.
    pub fn with_shared_models(mut self, models: Option<Arc<BTreeSet<String>>>) -> Self {
        self.allowed_models = models;
        self
    }

    /// Sets what is billed when this caller leaves an answer; `None` is for the configuration to say.
    pub fn with_on_abort(mut self, on_abort: Option<OnAbort>) -> Self {
        self.on_abort = on_abort;
        self
    }

    /// Sets what the operator has written at the key to route by; it means nothing else.
    pub fn with_tag(mut self, tag: Option<Arc<str>>) -> Self {
        self.tag = tag;
        self
    }

    /// The key's name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The user that the key belongs to.
    pub fn user_id(&self) -> Option<&str> {
        self.user_id.as_deref()
    }

    /// What identifies the key without giving it away; `None` for an anonymous caller.
    pub fn fingerprint(&self) -> Option<&Arc<str>> {
        self.fingerprint.as_ref()
    }

    /// The key as a log may show it.
    pub fn masked_key(&self) -> Option<&str> {
        self.masked_key.as_deref()
    }

    /// The models that this caller is restricted to; `None` means all.
    pub fn allowed_models(&self) -> Option<&BTreeSet<String>> {
        self.allowed_models.as_deref()
    }

    /// What is billed when this caller leaves an answer, where its key says so itself.
    pub fn on_abort(&self) -> Option<OnAbort> {
        self.on_abort
    }

    /// What the operator has written at the key to route by.
    pub fn tag(&self) -> Option<&Arc<str>> {
        self.tag.as_ref()
    }

    /// Whether this caller may use `model`.
    pub fn may_use(&self, model: &str) -> bool {
        self.allowed_models().is_none_or(|allowed| allowed.contains(model))
    }
}

// === impl OnAbort ===

impl OnAbort {
    /// The name that files use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Drain => "drain",
        }
    }

    /// Reads that name; `None` where it is none.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Delivered, Self::Drain].into_iter().find(|known| known.as_str() == name)
    }
}

// === impl Call ===

impl Call {
    /// More answers than this at a time count as so many. It is OpenAI's bound; what a server refuses must not look like work
    /// for hours.
    pub const MAX_ANSWERS: u32 = 128;

    /// A call of `endpoint` of which nothing else is known.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            model: None,
            takes_model: endpoint.takes_model(),
            stream: false,
            asked_usage: false,
            body_bytes: 0,
            read_time: Duration::ZERO,
            prompt_estimate: 0,
            answers: 1,
            max_output: None,
            units: None,
            user: None,
            prompt: None,
            needs: Needs::default(),
        }
    }
}
