//! Who is calling.
//!
//! [`AuthLayer`] looks for an API key in a request's head, asks its sources who the key belongs to, and writes the
//! answer into the exchange as a [`Caller`](llmproxy_core::Caller): a name, a user, the models it may use, never the key.
//! A stranger's body is never read. What the layer decides by is an [`Authenticator`], which knows no bodies and no
//! services and can be asked alone. Keys come from the configuration ([`AuthConfig`]) or from the builtin [`KeyStore`],
//! one SQLite file; another source is an implementation of [`KeySource`].
//!
//! Keys are known here by their SHA-256 only, and looked up by it, so that the time of an answer tells nothing about
//! how much of a guess was right.
//!
//! On its way inwards a request loses every header that may hold a key, and the client's own `X-API-Key-UserID` and
//! `X-API-Key-Name`; those two are set to what is known of the key.
//!
//! A request that is dropped while its key is looked up has done nothing: there is nothing to give back. A request that
//! is dropped later is the business of the layers further in, this one keeps no state for it.
//!
//! ```
//! use std::sync::Arc;
//!
//! use http::{Request, Response};
//! use llmproxy_auth::{AuthConfig, AuthLayer, Authenticator, SourceConfig, StaticKeyConfig};
//! use llmproxy_core::{BoxError, Exchange};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let alice = StaticKeyConfig { key: "sk-secret".into(), name: "alice".into(), ..StaticKeyConfig::default() };
//! let config = AuthConfig { enabled: true, pipeline: vec![SourceConfig::of_keys([alice])], ..AuthConfig::default() };
//! let layer = AuthLayer::new(Arc::new(Authenticator::new(&config, None)?));
//!
//! let service = layer.layer(service_fn(|mut request: Request<String>| async move {
//!     let caller = Exchange::of(request.extensions_mut());
//!     Ok::<_, BoxError>(Response::new(caller.caller().and_then(|caller| caller.name()).map(str::to_owned)))
//! }));
//! let request = Request::get("/v1/models").header("authorization", "Bearer sk-secret").body(String::new())?;
//! assert_eq!(service.oneshot(request).await?.into_body().as_deref(), Some("alice"));
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! First of all layers that may refuse. Outside of it is only what every request needs, known or not: in `llmproxy-stack`
//! the access log, which writes the client's address into the [`Exchange`](llmproxy_core::Exchange), and what makes errors
//! into answers. Inside is `llmproxy-metering`'s inspect layer, which reads bodies: a stranger's is never read. It reads the
//! address and writes the [`Caller`](llmproxy_core::Caller), for `llmproxy-ratelimit`, `/v1/models`, the access log and
//! the record.
//!
//! # What it must never know
//!
//! A body: it decides by the head, the path and the address. What a model or a limit is: it writes down which models a
//! caller may use and lets others act on it. Nothing that leaves it can be turned back into a key. A source of keys that
//! fails refuses; it never lets pass. SQL is here and in no other crate.
//!
//! # Used alone
//!
//! The layer reads where a request came from out of the exchange. Where nobody writes that, a key with a list of addresses
//! is refused. It is the one exception from the rule that less is enforced where a fact is absent: here that would open
//! a door. Which models a key may use is enforced by `llmproxy-ratelimit` only; without it, read
//! [`Caller::may_use`](llmproxy_core::Caller::may_use).

pub mod metrics;

mod address;
mod authenticator;
mod compile;
mod config;
mod error;
mod key;
mod layer;
mod rules;
mod service;
mod skip;
mod source;
mod store;

pub use address::{AddressRules, parse_net};
pub use authenticator::Authenticator;
pub use config::{
    AuthConfig, DEFAULT_HEADER_NAMES, Mode, SourceConfig, SourceKind, StaticConfig, StaticKeyConfig, StatusCodesConfig,
    StatusConfig, StatusRuleConfig,
};
pub use error::{AuthConfigError, AuthError, KeyStoreError, Refusal};
pub use key::{KeyEntry, KeyHash, KeyStatus, mask};
pub use layer::AuthLayer;
pub use service::Auth;
pub use source::{KeySource, StaticKeys};
pub use store::{Created, KeyStore, NewKey};
