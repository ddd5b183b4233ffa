//! The whole proxy: state, stack, server loop, and errors into answers.
//!
//! [`Runtime`] owns what outlives a configuration and builds stacks over it; [`Server`] accepts connections and hands
//! their requests to [`Runtime::service`]. To put the proxy into a service of your own, take the service and leave the
//! server, or hand your own router, with the service in it, to the server. To use single layers, take [`RespondLayer`] along.
//!
//! This crate decides nothing about keys, limits, tokens or backends: it puts the parts that do into one order and is
//! the only one that writes statuses of our own.

pub mod metrics;

mod access;
mod access_log;
mod error;
mod io;
mod models;
mod paths;
mod respond;
mod routes;
mod runtime;
mod server;

pub use access::Peer;
pub use error::StartError;
pub use respond::{Respond, RespondFuture, RespondLayer};
pub use runtime::{Options, RenderMetrics, Runtime};
pub use server::Server;
