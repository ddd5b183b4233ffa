//! Answers that never were a request's: the server gives them before anybody else has heard of the client.

use std::net::SocketAddr;

use http::{HeaderValue, StatusCode};

use crate::access::AccessLayer;

/// Writes into the access log, and counts, what the server answers by itself: to a head that can't be read, or is not
/// complete in time, or too large. Of such a client nothing is known but its address.
///
/// From [`Runtime::refusals`](crate::Runtime::refusals), for [`Server::with_refusals`](crate::Server::with_refusals). The
/// one that is made by `default` writes nothing.
#[derive(Clone, Default)]
pub struct Refusals(Option<AccessLayer>);

// === impl Refusals ===

impl Refusals {
    pub(crate) fn new(access: AccessLayer) -> Self {
        Self(Some(access))
    }

    /// Writes down one; gives the id that it has in the log.
    pub(crate) fn note(&self, peer: SocketAddr, status: StatusCode, why: &str) -> HeaderValue {
        match &self.0 {
            Some(access) => access.note(peer, status, why),
            None => llmproxy_core::Exchange::new().id_value(),
        }
    }
}

impl std::fmt::Debug for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Refusals").field(&self.0.is_some()).finish()
    }
}
