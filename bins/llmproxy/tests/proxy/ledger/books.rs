//! A receiver that keeps books: what it was told of which exchange, in which order, and how often.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use llmproxy_testkit::{Backend, Refused, Seen, Wire};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Between tries of a reporter there may be half a minute; whoever waits for longer waits in vain.
const NO_PROGRESS: Duration = Duration::from_secs(45);

/// A receiver on a port of its own. It lives outside of the proxy, and no book is lost when it is closed for a while.
pub(super) struct Books {
    backend: Backend,
    shared: Arc<Shared>,
}

/// The same, closed: connections to it are refused.
pub(super) struct Closed {
    port: Refused,
    shared: Arc<Shared>,
}

/// What it does with what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Manner {
    /// Books it and answers 200.
    #[default]
    Accepts,
    /// Answers so.
    Answers(u16),
    /// Answers 429 with a Retry-After of so many seconds.
    Throttles(u64),
    /// Does not answer.
    Hangs,
    /// Books it and closes the connection in the middle of its answer, before it has said what became of it.
    ClosesMidHead,
    /// The same, after it has.
    ClosesMidBody,
    /// Answers 400 where one record is of the model `poison`.
    RefusesPoison,
}

#[derive(Debug, Default)]
struct Shared {
    manner: Mutex<Manner>,
    /// When requests came.
    requests: Mutex<Vec<Instant>>,
    told: watch::Sender<Told>,
}

/// The books.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// The ids, as they came for the first time.
    pub(super) order: Vec<String>,
    /// What was said of each.
    pub(super) texts: HashMap<String, String>,
    /// How often one came once more that was known.
    pub(super) again: usize,
    /// Where that said something else.
    pub(super) conflicts: Vec<String>,
}

// === impl Books ===

impl Books {
    pub(super) fn open() -> Self {
        Closed::new().open()
    }

    pub(super) fn url(&self) -> String {
        format!("{}/usage", self.backend.url())
    }

    /// Does so from now on.
    pub(super) fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().expect("nobody panics while holding it") = manner;
    }

    /// When requests came, refused ones included.
    pub(super) fn requests(&self) -> Vec<Instant> {
        self.shared.requests.lock().expect("nobody panics while holding it").clone()
    }

    /// Waits until so many requests have come.
    pub(super) async fn asked(&self, count: usize) {
        self.backend.when(|counts| counts.requests >= count).await;
    }

    pub(super) fn told(&self) -> Told {
        self.shared.told.borrow().clone()
    }

    /// Waits until all of `ids` are booked; as long as there is progress, it is waited for.
    pub(super) async fn wait_for(&self, ids: &[String]) -> Told {
        let mut told = self.shared.told.subscribe();
        // Each is looked up once: the receiver has this thread, too.
        let mut found = 0;
        loop {
            {
                let told = told.borrow_and_update();
                found += ids[found..].iter().take_while(|id| told.texts.contains_key(*id)).count();
            }
            if found == ids.len() {
                return self.told();
            }
            let changed = timeout(NO_PROGRESS, told.changed()).await;
            let _ = changed.unwrap_or_else(|_| {
                let (all, counts) = (ids.len(), self.backend.counts());
                panic!(
                    "of {all} records {} don't come, such as {}; the receiver has {counts:?}",
                    all - found,
                    ids[found]
                )
            });
        }
    }

    /// Refuses connections from now on.
    pub(super) async fn close(self) -> Closed {
        Closed { port: self.backend.stop().await, shared: self.shared }
    }
}

// === impl Closed ===

impl Closed {
    pub(super) fn new() -> Self {
        Self { port: Refused::new(), shared: Arc::default() }
    }

    pub(super) fn url(&self) -> String {
        format!("{}/usage", self.port.url())
    }

    pub(super) fn open(self) -> Books {
        let theirs = self.shared.clone();
        let backend = self.port.start(move |seen, wire| receive(theirs.clone(), seen, wire));
        Books { backend, shared: self.shared }
    }
}

async fn receive(shared: Arc<Shared>, seen: Seen, mut wire: Wire) -> io::Result<()> {
    shared.requests.lock().expect("nobody panics while holding it").push(Instant::now());
    let manner = *shared.manner.lock().expect("nobody panics while holding it");
    let body = seen.json();
    let records = match body {
        Value::Array(records) => records,
        one => vec![one],
    };
    match manner {
        Manner::Accepts => {}
        Manner::RefusesPoison if records.iter().any(|record| record["model"] == "poison") => {
            return wire.respond(400, &[], "I don't like one of these").await;
        }
        Manner::RefusesPoison => {}
        Manner::Answers(status) => return wire.respond(status, &[], "told to fail").await,
        Manner::Throttles(seconds) => {
            return wire.respond(429, &[("retry-after", &seconds.to_string())], "later").await;
        }
        Manner::Hangs => {
            wire.client_gone().await;
            return Ok(());
        }
        Manner::ClosesMidHead => {
            shared.told.send_modify(|told| told.book(&records));
            wire.raw("HTTP/1.1 200 OK\r\ncontent-le").await?;
            wire.close().await;
            return Ok(());
        }
        Manner::ClosesMidBody => {
            shared.told.send_modify(|told| told.book(&records));
            wire.head(200, &[("content-length", "100")]).await?;
            wire.chunk("half an an").await?;
            wire.close().await;
            return Ok(());
        }
    }
    // Before the answer: what was answered is booked.
    shared.told.send_modify(|told| told.book(&records));
    wire.respond(200, &[], "ok").await
}

// === impl Told ===

impl Told {
    fn book(&mut self, records: &[Value]) {
        for record in records {
            let (Some(id), text) = (record["request_id"].as_str(), record.to_string()) else {
                self.conflicts.push(format!("no record: {record}"));
                continue;
            };
            match self.texts.get(id) {
                None => {
                    self.order.push(id.to_owned());
                    self.texts.insert(id.to_owned(), text);
                }
                Some(known) => {
                    self.again += 1;
                    if *known != text {
                        self.conflicts.push(format!("first {known}, then {text}"));
                    }
                }
            }
        }
    }

    /// What it was told of `id`.
    pub(super) fn of(&self, id: &str) -> Option<Value> {
        self.texts.get(id).map(|text| serde_json::from_str(text).expect("it was written from JSON"))
    }
}
