//! A receiver of webhooks.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::sync::watch;

use crate::{
    Backend, Seen, Wire,
    backend::{lock, remember},
    patience::within,
};

/// Takes webhooks and keeps their JSON; can be told to behave badly for a while.
///
/// ```
/// use llmproxy_testkit::{Behaviour, Client, Receiver};
/// use serde_json::json;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let receiver = Receiver::start().await;
/// receiver.behave_for(1, Behaviour::Status(503));
///
/// // Whoever reports has to try twice.
/// let mut client = Client::connect(receiver.addr()).await;
/// assert_eq!(client.post_json("/usage", &json!({"model": "demo"})).await.status, 503);
/// assert_eq!(client.post_json("/usage", &json!({"model": "demo"})).await.status, 200);
/// let bodies = receiver.wait_for(1).await;
/// assert_eq!(bodies[0]["model"], "demo");
/// # });
/// ```
#[derive(Debug)]
pub struct Receiver {
    backend: Backend,
    inbox: Arc<Inbox>,
}

/// What a receiver does with what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Keeps it and answers 200.
    Accept,
    /// Answers with this status.
    Status(u16),
    /// Answers 429 with a `retry-after` of so many seconds.
    Throttle(u64),
    /// Does not answer.
    Hang,
    /// Breaks the connection.
    Reset,
}

#[derive(Debug)]
struct Inbox {
    /// The second is for how many requests more; `None` until told otherwise.
    behaviour: Mutex<(Behaviour, Option<usize>)>,
    bodies: watch::Sender<Vec<Value>>,
}

// === impl Receiver ===

impl Receiver {
    /// Starts a receiver on a free port of loopback.
    ///
    /// # Panics
    ///
    /// If there is none.
    ///
    /// # Cancel safety
    ///
    /// There is nothing to wait for: it is ready at once.
    pub async fn start() -> Self {
        let inbox =
            Arc::new(Inbox { behaviour: Mutex::new((Behaviour::Accept, None)), bodies: watch::Sender::default() });
        let theirs = inbox.clone();
        let backend = Backend::start(move |seen, wire| receive(theirs.clone(), seen, wire)).await;
        Self { backend, inbox }
    }

    /// Where to report to.
    pub fn url(&self) -> String {
        format!("{}/usage", self.backend.url())
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.backend.addr()
    }

    /// The server behind it: counts, requests with their headers, refused ones included.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Behaves so from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.inbox.behaviour) = (behaviour, None);
    }

    /// Behaves so for the next `requests`, and accepts afterwards.
    pub fn behave_for(&self, requests: usize, behaviour: Behaviour) {
        *lock(&self.inbox.behaviour) = (behaviour, Some(requests));
    }

    /// What it has accepted so far, oldest first; of more than [`KEPT`](crate::KEPT) the older ones are forgotten.
    pub fn bodies(&self) -> Vec<Value> {
        self.inbox.bodies.borrow().clone()
    }

    /// Waits until it has accepted at least `count` bodies, and gives all that it has.
    ///
    /// # Panics
    ///
    /// If they have not come after ten seconds, saying what has.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn wait_for(&self, count: usize) -> Vec<Value> {
        let mut bodies = self.inbox.bodies.subscribe();
        let seen = || format!("of {count} bodies these came: {:?}; {:?}", self.bodies(), self.backend.counts());
        let found = within(bodies.wait_for(|bodies| bodies.len() >= count), seen).await;
        found.expect("the sender lives as long as self").clone()
    }
}

async fn receive(inbox: Arc<Inbox>, seen: Seen, mut wire: Wire) -> io::Result<()> {
    match inbox.next_behaviour() {
        Behaviour::Accept => {
            let body = seen.json();
            if body.is_null() {
                return wire.respond(400, &[], "not JSON").await;
            }
            // Before the answer: who has it may look for the body at once.
            inbox.bodies.send_modify(|bodies| remember(bodies, body));
            wire.respond(200, &[], "ok").await
        }
        Behaviour::Status(status) => wire.respond(status, &[], "told to fail").await,
        Behaviour::Throttle(seconds) => {
            wire.respond(429, &[("retry-after", &seconds.to_string())], "told to throttle").await
        }
        Behaviour::Hang => {
            wire.client_gone().await;
            Ok(())
        }
        Behaviour::Reset => {
            wire.reset();
            Ok(())
        }
    }
}

// === impl Inbox ===

impl Inbox {
    fn next_behaviour(&self) -> Behaviour {
        let mut behaviour = lock(&self.behaviour);
        match &mut *behaviour {
            (_, Some(0)) => *behaviour = (Behaviour::Accept, None),
            (_, Some(left)) => *left -= 1,
            (_, None) => {}
        }
        behaviour.0
    }
}
