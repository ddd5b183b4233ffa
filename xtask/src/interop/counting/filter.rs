//! What stands between the proxy and the server: hides how much the server has counted, and stops at a token.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use llmproxy_testkit::{Backend, Client, Seen, Wire};
use serde_json::Value;
use tokio::sync::Notify;

use super::said::{Events, text_of};
use crate::interop::server::Counted;

/// The header by which a client asks for a stop behind so many pieces of text.
pub(super) const STOP: &str = "x-interop-stop";

/// A server with something in front of it.
pub(super) struct Filter {
    backend: Backend,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    hides: bool,
    /// What the server said of each request, by the id that the proxy has given it.
    told: Mutex<BTreeMap<String, Counted>>,
    go_on: Notify,
}

// === impl Filter ===

impl Filter {
    /// Forwards to `server`; where it `hides`, without the server's counts, which it knows token by token then.
    pub(super) async fn start(server: SocketAddr, hides: bool) -> Self {
        let shared = Arc::new(Shared { server, hides, told: Mutex::default(), go_on: Notify::new() });
        let forward = shared.clone();
        let backend = Backend::start(move |seen, wire| {
            let shared = forward.clone();
            async move { shared.forward(seen, wire).await }
        });
        Self { backend: backend.await, shared }
    }

    pub(super) fn url(&self) -> String {
        self.backend.url()
    }

    /// What the server had counted of the request `id` when the last of it was forwarded.
    pub(super) fn told(&self, id: &str) -> Result<Counted, String> {
        let told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(id).copied().ok_or_else(|| format!("the server has counted nothing of {id}"))
    }

    /// The answer that has stopped goes on.
    pub(super) fn go_on(&self) {
        self.shared.go_on.notify_one();
    }
}

// === impl Shared ===

impl Shared {
    async fn forward(&self, seen: Seen, mut wire: Wire) -> io::Result<()> {
        let mut server = Client::try_connect(self.server).await?;
        let mut body = seen.json();
        let is_stream = body["stream"] == true;
        if self.hides && is_stream {
            // How else would one know what a part of an answer has come to?
            body["timings_per_token"] = true.into();
        }
        let bytes = if body.is_null() { seen.body.to_vec() } else { body.to_string().into_bytes() };
        server.send(&seen.method, &seen.path, &[("content-type", "application/json")], &bytes).await;
        let id = seen.header("x-request-id").unwrap_or_default().to_owned();
        let head = server.try_head().await?;
        let kind = head.header("content-type").unwrap_or("application/json").to_owned();
        if !kind.starts_with("text/event-stream") {
            let answer = server.read_to_end().await;
            let Ok(mut json) = serde_json::from_slice::<Value>(&answer.body()) else {
                return wire.respond(answer.status, &[("content-type", &kind)], answer.body()).await;
            };
            self.note(&id, &json);
            if self.hides {
                hide(&mut json);
            }
            return wire.json(answer.status, &json).await;
        }
        wire.head(head.status, &[("content-type", &kind)]).await?;
        let stop = seen.header(STOP).and_then(|count| count.parse::<usize>().ok());
        let (mut events, mut pieces) = (Events::default(), 0);
        while let Some(piece) = server.piece().await {
            for event in events.push(&piece) {
                let forwarded = match Events::json(&event) {
                    Some(mut json) => {
                        self.note(&id, &json);
                        let has_text = !text_of(&json).is_empty();
                        pieces += usize::from(has_text);
                        if self.hides && hide(&mut json) {
                            continue;
                        }
                        let forwarded = if self.hides { format!("data: {json}\n\n") } else { event };
                        wire.chunk(forwarded).await?;
                        has_text
                    }
                    None => {
                        wire.chunk(event).await?;
                        false
                    }
                };
                if forwarded && stop == Some(pieces) {
                    tokio::select! {
                        () = wire.client_gone() => return Ok(()),
                        () = self.go_on.notified() => {}
                    }
                }
            }
        }
        wire.finish().await
    }

    /// Takes note of what an event, or an answer, says that was counted.
    fn note(&self, id: &str, json: &Value) {
        let number = |value: &Value| value.as_u64();
        let (usage, timings) = (&json["usage"], &json["timings"]);
        let prompt = number(&usage["prompt_tokens"])
            .or_else(|| Some(number(&timings["prompt_n"])? + number(&timings["cache_n"]).unwrap_or_default()));
        let completion = number(&usage["completion_tokens"]).or_else(|| number(&timings["predicted_n"]));
        if let (Some(prompt), Some(completion)) = (prompt, completion) {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.insert(id.to_owned(), Counted { prompt, completion });
        }
    }
}

/// Takes out what was counted. Returns whether nothing else was in it.
fn hide(json: &mut Value) -> bool {
    let Some(members) = json.as_object_mut() else { return false };
    let usage = members.remove("usage");
    members.remove("timings");
    usage.is_some() && members.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty)
}
