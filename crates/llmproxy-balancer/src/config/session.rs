//! What an operator may write about sessions.

use serde::Deserialize;

/// `routing.session`: what tells one session from another, with `load_balance: session`.
///
/// ```
/// use llmproxy_balancer::{LoadBalance, RoutingConfig, SessionConfig, validate_routing};
///
/// let session = SessionConfig { cookie: Some("sid".into()), ..SessionConfig::default() };
/// let routing = RoutingConfig { load_balance: LoadBalance::Session, session, ..RoutingConfig::default() };
/// assert!(validate_routing(&routing).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct SessionConfig {
    /// Headers that may hold its key; the first that a request has counts. Without one: the cookie, the body's `user`, the
    /// opening of the conversation.
    pub headers: Vec<String>,
    /// The cookie that may hold it.
    pub cookie: Option<String>,
    /// How many times its share of the requests a backend may have before a session's next request goes to another one.
    pub load_factor: f64,
}

/// What coding agents send with each request of a conversation.
pub const DEFAULT_SESSION_HEADERS: [&str; 2] = ["x-session-id", "x-session-affinity"];
/// A quarter more than its share: with less, sessions move often; with more, somebody waits behind a popular one.
pub const DEFAULT_LOAD_FACTOR: f64 = 1.25;

// === impl SessionConfig ===

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            headers: DEFAULT_SESSION_HEADERS.map(str::to_owned).to_vec(),
            cookie: None,
            load_factor: DEFAULT_LOAD_FACTOR,
        }
    }
}
