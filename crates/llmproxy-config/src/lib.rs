//! The one file: what an operator may write, read once, checked whole, and handed to the parts.
//!
//! [`load`] reads a YAML file and goes through it in steps, so that everything wrong with it is said at once:
//!
//! 1. parse, refusing a key that is written twice, and put `LLMPROXY_SERVER__LISTEN`-like variables over it;
//! 2. expand `${VAR}`, `${VAR:-default}` and `${file:/run/secrets/x}` in values, never in the text;
//! 3. take over keys that have another name now;
//! 4. walk the values against the table of all keys ([`reference()`]): unknown, mistyped, not offered yet;
//! 5. deserialize each part's own config type, and check what belongs together.
//!
//! A key that is known and not acted on yet is refused where ignoring it would weaken access, limits or billing, and is
//! a warning elsewhere; it is never ignored in silence. No message quotes a secret.
//!
//! [`Live`] is the other half: the service that hands each request to the newest stack that a valid file made.
//!
//! ```
//! use llmproxy_config::{LoadOptions, load_str};
//!
//! let loaded = load_str("backends:\n  - url: http://localhost:11434\n", &LoadOptions::default())?;
//! assert_eq!(loaded.config.server.listen, ":8000");
//! assert!(loaded.warnings.is_empty());
//! # Ok::<(), llmproxy_config::LoadError>(())
//! ```
//!
//! # Where it stands
//!
//! Between the parts and what puts them together. It knows the config types of `llmproxy-auth`, `llmproxy-ratelimit`,
//! `llmproxy-metering`, `llmproxy-balancer`, `llmproxy-sse` and `llmproxy-usage`, each of which owns its block, and is known
//! by `llmproxy-stack` and the command line. It is done when the proxy starts: nothing reads a configuration while
//! requests are served.
//!
//! In the stack, [`Live`] stands between what outlives a configuration, the access log, and what is built anew for each:
//! the routes and all layers behind them. It reads and writes no fact.
//!
//! # What it must never know
//!
//! How a part does its work, a request's content, when a reload is asked for. It finds what no part can find alone:
//! unknown keys, what belongs together, every mistake at once.
//!
//! # Used alone
//!
//! The parts' config types are plain serde, and each has its own `validate`: who builds a few layers without a file needs
//! nothing of this crate. [`Live`] takes any service.

mod compose;
mod config;
mod cors;
mod error;
mod expand;
mod idle;
mod listener;
mod live;
mod load;
mod logging;
mod reference;
mod rename;
mod scalar;
mod server;
mod table;
mod tree;
mod walk;

pub use config::{Config, CustomLabel, MetricsConfig, PathsConfig};
pub use cors::{AllowedOrigin, CorsConfig};
pub use error::{LoadError, Mistake, Warning};
pub use listener::{ClientAuth, ListenAddress, ListenerConfig, TlsConfig};
pub use live::{Live, LiveHandle};
pub use load::{LoadOptions, Loaded, load, load_str};
pub use logging::{
    AccessConfig, AccessFormat, AccessLogConfig, AccessOutput, LogConfig, LogFile, LogFormat, LogLevel, LogOutput,
    LoggingConfig,
};
pub use reference::{KeyDoc, KeyState, reference, reference_markdown};
pub use server::{Http2Config, ServerConfig};
