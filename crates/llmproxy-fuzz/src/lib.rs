//! What must hold for any bytes at all, whoever sends them.
//!
//! One function for each place that reads what strangers write. Each takes bytes, and panics where a property does not
//! hold. A fuzzer calls them with what it makes up (`cargo xtask fuzz`, which needs a nightly compiler; its targets are in
//! `fuzz/`), and this crate's tests with what was worth keeping of that: the files in `corpus/`.
//!
//! ```
//! // An event that comes in pieces is the event.
//! llmproxy_fuzz::scanner(b"event: a\r\ndata: 1\r\n\r\n");
//! // A question keeps all of its bytes but those of the model and of the usage that we ask for.
//! llmproxy_fuzz::request(br#"{"model":"a","stream":true,"messages":[]}"#);
//! ```
//!
//! # Where it stands
//!
//! Beside the proxy, never in it: it looks at the parts through what they offer to anybody, so that what is inside of
//! them can be written anew without it.
//!
//! # What it must never know
//!
//! How a part does what it does. A property is told by a reader as plain as can be, or by the bytes on the other side.

mod config;
mod cut;
mod form;
mod heads;
mod request;
mod scanner;
mod stream;

pub use config::config;
pub use form::form;
pub use heads::heads;
pub use request::request;
pub use scanner::scanner;
pub use stream::stream;

/// What must hold for some bytes, or it panics.
pub type Property = fn(&[u8]);

/// Every property by the name of its target, which is that of its folder in `corpus/`, too.
///
/// ```
/// assert!(llmproxy_fuzz::TARGETS.iter().any(|(name, _)| *name == "scanner"));
/// ```
pub const TARGETS: &[(&str, Property)] = &[
    ("config", config),
    ("form", form),
    ("heads", heads),
    ("request", request),
    ("scanner", scanner),
    ("stream", stream),
];
