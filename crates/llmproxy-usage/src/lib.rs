//! What is told to others, and never lost before it is: the ledger and its reporters.
//!
//! A record that nobody has room for would be lost when its answer is long gone. So [`UsageLayer`] reserves a place for it
//! before the request goes on, and leaves a sink in the exchange that takes it when it comes; where there is no place, the
//! request is refused with [`UsageError`] before a backend has worked for it. A place that was reserved for a request that
//! never has a record (refused further in, or nothing to count) is free again as soon as the exchange is gone.
//! [`OpeningLayer`], further in, notes that an exchange has begun, so that one which is open when the process dies is found at
//! the next start.
//!
//! A record's first stop is the ledger, a file ([`LedgerConfig`], [`Durability`]). [`Reporters`] own it, and a task for each
//! reporter that reads it in order from its own place and delivers, for as long as it takes. They outlive the layers: a
//! reload applies its configuration to them. Where records go besides webhooks, files, the standard output and databases is an
//! implementation of [`Report`]. [`LedgerReader`] reads the file from another process.
//!
//! ```
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use llmproxy_core::{BoxError, HttpClient, RequestBody};
//! use llmproxy_usage::{LedgerConfig, ReporterConfig, Reporters, UsageConfig, UsageLayer, WebhookConfig};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let client = HttpClient::new(service_fn(async |_: Request<Bytes>| Ok::<_, BoxError>(Response::new(Bytes::new()))));
//! # let folder = std::env::temp_dir().join(format!("llmproxy-usage-doc-{}", std::process::id()));
//! let webhook = WebhookConfig { url: "https://billing.example/usage".into(), ..WebhookConfig::default() };
//! let config = UsageConfig {
//!     enabled: true,
//!     reporters: vec![ReporterConfig { webhook, ..ReporterConfig::default() }],
//!     ledger: LedgerConfig { path: folder.join("usage.db"), ..LedgerConfig::default() },
//!     ..UsageConfig::default()
//! };
//! assert!(config.validate().is_empty());
//!
//! let reporters = Reporters::new(client); // The client is what webhooks are sent through.
//! reporters.open(&config).await?; // What can fail.
//! reporters.apply(&config);
//! let service = UsageLayer::new(reporters.clone()).layer(service_fn(async |_: Request<RequestBody>| {
//!     Ok::<_, BoxError>(Response::new("answered by what is further in"))
//! }));
//! service.oneshot(Request::new(RequestBody::whole("{}"))).await?;
//!
//! // At shutdown:
//! let left = reporters.flush(Duration::from_secs(5)).await;
//! assert_eq!(left, 0);
//! reporters.close().await;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! [`UsageLayer`] stands inside of `llmproxy-auth` and of `llmproxy-metering`'s inspect layer, which read and refuse first,
//! and outside of `llmproxy-ratelimit`, of the meter that makes the record, and of all that asks a backend. What it leaves in
//! the [`Exchange`](llmproxy_core::Exchange) is a sink and, in strict durability, what the end of the answer waits for.
//! [`OpeningLayer`] stands inside of `llmproxy-ratelimit`. [`Reporters`] stand beside the stack and ask HTTP only through the
//! [`HttpClient`](llmproxy_core::HttpClient) that they are given.
//!
//! # What it must never know
//!
//! Who counted, or how: it takes records and delivers them. It is in no request's way but for the place that it reserves, and
//! in strict durability for the disk.
//! The key that a request came with is in no report.
//!
//! # Used alone
//!
//! Without a meter further in, no sink is ever called and nothing is reported; the places are free again when the
//! exchanges are gone. Without `llmproxy-auth` a report names no caller.

pub mod metrics;

mod answer;
mod backups;
mod builtin;
mod clashes;
mod config;
mod database;
mod dead_letter;
mod delivery;
mod destination;
mod error;
mod fields;
mod file;
mod filter;
mod json;
mod layer;
mod ledger;
mod line_report;
mod lines;
mod opening;
mod read;
mod replay;
mod report;
mod reporter;
mod reporters;
#[cfg(test)]
mod scratch;
mod service;
mod signature;
mod stdout;
mod totals;
mod userinfo;
mod webhook;

pub use builtin::{BuiltinConfig, BuiltinError, BuiltinReport, BuiltinStore};
pub use config::{ReporterConfig, Stores, UsageConfig, WebhookConfig};
pub use database::{DatabaseConfig, DatabaseReport, DatabaseReporterConfig, StorageConfig};
pub use error::{Uncommitted, UsageError};
pub use file::FileConfig;
pub use filter::FilterConfig;
pub use json::to_json;
pub use layer::UsageLayer;
pub use ledger::{Durability, LedgerConfig, LedgerError, LedgerReader, Page, ReporterPlace};
pub use opening::{Opening, OpeningLayer};
pub use replay::{Replay, ReplayError, ReplayRange, ReplayTally, Stopped};
pub use report::{Entry, Report, ReportBatch, Verdict};
pub use reporters::Reporters;
pub use service::Usage;
pub use totals::{Group, Query, Total, Totals};
