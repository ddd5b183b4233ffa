//! What server and upstream tell each other about a connection that changes its protocol.

use std::{
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::io::AsyncWrite;

use crate::BoxBody;

/// Where what a client sends goes, once a backend has changed the protocol.
pub type ToBackend = Pin<Box<dyn AsyncWrite + Send>>;

/// A change of protocol that a client asks for (RFC 9110, section 7.8): a handle, all clones are one.
///
/// A server that can carry it out leaves one in the request's extensions. Where a backend agrees, the innermost service
/// leaves the same one in the extensions of its 101, with the [way to it](ToBackend); what the backend sends is the answer's body. So
/// every layer sees the tunnel as an answer that lasts, and its end is the answer's. The server then gives the client an
/// empty body and drives the real one.
///
/// ```
/// use llmproxy_core::Upgrade;
///
/// let upgrade = Upgrade::default();
/// assert!(!upgrade.begin(Default::default()), "no backend has agreed");
/// upgrade.agree(Box::pin(Vec::new()));
/// upgrade.map_to_backend(|way| way);
/// assert!(upgrade.begin(Default::default()));
/// assert!(upgrade.take().is_some());
/// assert!(upgrade.take().is_none());
/// ```
#[derive(Clone, Default)]
pub struct Upgrade(Arc<Mutex<State>>);

/// A connection that has become a tunnel.
pub struct Tunnel {
    /// What the backend sends. Dropping it is leaving; its end is the backend's.
    pub from_backend: BoxBody,
    /// What the client sends goes here.
    pub to_backend: ToBackend,
}

#[derive(Default)]
enum State {
    #[default]
    Asked,
    Agreed(ToBackend),
    Begun(Tunnel),
}

// === impl Upgrade ===

impl Upgrade {
    /// A backend has agreed.
    pub fn agree(&self, to_backend: ToBackend) {
        *self.lock() = State::Agreed(to_backend);
    }

    /// Puts `wrap` around the way to the backend, where one has agreed.
    pub fn map_to_backend(&self, wrap: impl FnOnce(ToBackend) -> ToBackend) {
        let mut state = self.lock();
        *state = match mem::take(&mut *state) {
            State::Agreed(way) => State::Agreed(wrap(way)),
            other => other,
        };
    }

    /// The client is told, and the answer's body is kept for the tunnel. False where no backend has agreed.
    pub fn begin(&self, from_backend: BoxBody) -> bool {
        let mut state = self.lock();
        let State::Agreed(to_backend) = mem::take(&mut *state) else { return false };
        *state = State::Begun(Tunnel { from_backend, to_backend });
        true
    }

    /// The tunnel, once, where it has begun.
    pub fn take(&self) -> Option<Tunnel> {
        let mut state = self.lock();
        match mem::take(&mut *state) {
            State::Begun(tunnel) => Some(tunnel),
            other => {
                *state = other;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}
