//! The backends: each request says which exchange it is of, and gets what that one's plan has for it.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use llmproxy_testkit::{Seen, Wire};
use tokio::time::sleep;

use super::plan::{Ask, Break, Fault, Plan, own_error};

const USAGE_EVENT: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n";

/// What all backends know: the plans, and what they were asked.
pub(super) struct Stage {
    pub(super) plans: Vec<Plan>,
    /// The proxy's ids of the requests of each exchange, in the order in which they came.
    asked: Mutex<Vec<Vec<String>>>,
}

// === impl Stage ===

impl Stage {
    pub(super) fn new(plans: Vec<Plan>) -> Arc<Self> {
        let asked = Mutex::new(vec![Vec::new(); plans.len()]);
        Arc::new(Self { plans, asked })
    }

    pub(super) fn asked(&self, id: usize) -> Vec<String> {
        self.asked.lock().expect("nobody panics while holding it")[id].clone()
    }

    /// Plays what is planned for one request.
    pub(super) async fn answer(self: Arc<Self>, seen: Seen, mut wire: Wire) -> io::Result<()> {
        let id: usize = seen.header("x-chaos").and_then(|id| id.parse().ok()).expect("every client says who it is");
        let attempt = {
            let mut asked = self.asked.lock().expect("nobody panics while holding it");
            asked[id].push(seen.header("x-request-id").unwrap_or_default().to_owned());
            asked[id].len() - 1
        };
        let plan = &self.plans[id];
        let attempt_text = attempt.to_string();
        let (breaks_after, how) = match plan.fault(attempt) {
            Fault::None | Fault::Trickle | Fault::ClosesAfter => (usize::MAX, None),
            Fault::Breaks(pieces, how) => (pieces, Some(how)),
            Fault::ResetBeforeHead => {
                wire.reset();
                return Ok(());
            }
            Fault::StallBeforeHead => {
                wire.client_gone().await;
                return Ok(());
            }
            Fault::CloseBeforeHead => return close(wire).await,
            Fault::HalfHead => {
                wire.raw("HTTP/1.1 200 OK\r\ncontent-ty").await?;
                wire.client_gone().await;
                return Ok(());
            }
            Fault::GarbageHead => {
                wire.raw("\u{16}\u{3}\u{1} this is no HTTP\r\n\r\n").await?;
                return close(wire).await;
            }
            Fault::HugeHead => {
                wire.raw(format!("HTTP/1.1 200 OK\r\nx-huge: {}\r\n\r\n", "x".repeat(1 << 20))).await?;
                return close(wire).await;
            }
            Fault::Status(status) => {
                let headers =
                    [("content-type", "application/json"), ("retry-after", "0"), ("x-attempt", &*attempt_text)];
                return wire.respond(status, &headers, own_error(status).to_string()).await;
            }
        };

        let pieces = plan.pieces();
        let length = pieces.iter().map(String::len).sum::<usize>().to_string();
        let kind = if plan.ask == Ask::Stream { "text/event-stream" } else { "application/json" };
        let mut headers = vec![("content-type", kind), ("x-attempt", &*attempt_text)];
        let chunked_anyway = matches!(how, Some(Break::TruncatedChunk | Break::BadChunkSize));
        let has_length = plan.ask != Ask::Stream && id.is_multiple_of(2) && !chunked_anyway;
        if has_length {
            headers.push(("content-length", &length));
        }
        wire.head(200, &headers).await?;
        let wants_usage = seen.json()["stream_options"]["include_usage"] == true;
        for (index, piece) in pieces.iter().enumerate() {
            if index == breaks_after.min(pieces.len() - 1) && how.is_some() {
                break;
            }
            // The proxy has asked for it and takes it out; it may come together with another event, or alone.
            let is_last = index == pieces.len() - 1 && wants_usage;
            match (is_last, id % 3) {
                (true, 0) => wire.chunk(format!("{USAGE_EVENT}{piece}")).await?,
                (true, _) => {
                    wire.chunk(USAGE_EVENT).await?;
                    wire.chunk(piece).await?;
                }
                // Slowly too for whoever wants to leave in the middle: else all of it would be there before.
                (false, _) if plan.fault(attempt) == Fault::Trickle || plan.leaves_in_the_middle() => {
                    for few in piece.as_bytes().chunks(23) {
                        wire.chunk(few).await?;
                        sleep(Duration::from_millis(1)).await;
                    }
                }
                (false, _) => wire.chunk(piece).await?,
            }
        }
        match how {
            None if plan.fault(attempt) == Fault::ClosesAfter => wire.finish_and_close().await,
            None => wire.finish().await,
            Some(Break::Reset) => {
                wire.reset();
                Ok(())
            }
            Some(Break::Stall) => {
                wire.client_gone().await;
                Ok(())
            }
            Some(Break::Close) => close(wire).await,
            Some(Break::TruncatedChunk) => {
                wire.raw("100\r\n").await?;
                close(wire).await
            }
            Some(Break::BadChunkSize) => {
                wire.raw("what?\r\n\r\n").await?;
                close(wire).await
            }
        }
    }
}

async fn close(wire: Wire) -> io::Result<()> {
    wire.close().await;
    Ok(())
}
