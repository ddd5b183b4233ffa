//! What is told to others: the reporters, and the layer that makes sure that there is room for what they will be told.
//!
//! A record that nobody has room for would be lost when its answer is long gone. So [`UsageLayer`] reserves one place in
//! every reporter's queue before the request goes on, and leaves a sink in the exchange that fills it when the record
//! comes; where there is no place, the request is refused with [`UsageError`] before a backend has worked for it. A place
//! that was reserved for a request that never has a record (refused further in, or nothing to count) is free again as
//! soon as the exchange is gone.
//!
//! [`Reporters`] own the queues and send what is in them, never in a request's way. They outlive the layers: a reload
//! applies its configuration to them, and a reporter that is no longer configured still sends what it was given. Where
//! records go besides webhooks is an implementation of [`Report`].
//!
//! Who makes the records is not known here: without a meter further in, no sink is ever called and nothing is reported.
//!
//! ```
//! use llmproxy_core::HttpClient;
//! use llmproxy_usage::{Reporters, UsageConfig, UsageLayer};
//!
//! # async fn example(client: HttpClient, config: &UsageConfig) {
//! let reporters = Reporters::new(client);
//! reporters.apply(config);
//! let layer = UsageLayer::new(reporters.clone());
//! // ... serve, then at shutdown:
//! let left = reporters.flush(std::time::Duration::from_secs(5)).await;
//! # }
//! ```

pub mod metrics;

mod config;
mod delivery;
mod error;
mod json;
mod layer;
mod report;
mod reporter;
mod reporters;
mod service;
mod slots;
mod webhook;

pub use config::{ReporterConfig, UsageConfig, WebhookConfig};
pub use error::UsageError;
pub use json::to_json;
pub use layer::UsageLayer;
pub use report::{Entry, Report, Verdict};
pub use reporters::Reporters;
pub use service::Usage;
