//! What watches one answer, from the request on to the end.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
    response::Parts,
};
use llmproxy_core::{
    BoxError, Exchange,
    body::{Ending, Out, Shape},
};
use llmproxy_sse::{Event, Scanner};
use tokio::time::Instant;

use super::{
    abandon::Left,
    gate::Gate,
    rules::Rules,
    stream::{Events, Framing},
};
use crate::{
    answer::{Coding, Dialect, Large, Lines, Packed, Plain, Tally, TopLevel, Withhold},
    media::{is_json, is_type, media_type},
    metrics::WITHHELD,
};

/// Watches one answer and records it; takes the usage event out that the proxy itself has asked for. Made by
/// [`Meter`](crate::Meter). No chunk is held back but the one that the usage event stands in, and none is copied but what is
/// unpacked of a compressed answer.
///
/// Where an [`EndHold`](llmproxy_core::EndHold) was left in the exchange, the end of the answer waits for it: the frame that
/// completes a Content-Length, of a stream the event that nothing follows (or that tells of an error) with all behind it, in any
/// case the end of the body, be it a failure. All before goes on as it comes. Of a compressed stream it is the piece in which
/// that event shows; of zstd, which shows it late, and of what is not unpacked it may be the end of the body alone. Nothing is
/// held of the answer to a client that has left, nor in a tunnel (101), nor where there is no record to wait for.
pub struct Metering {
    pub(super) exchange: Arc<Exchange>,
    pub(super) method: Method,
    pub(super) path: Arc<str>,
    pub(super) rules: Arc<Rules>,
    /// The request's JSON, as long as its prompt may be counted. Rarely there.
    pub(super) body: Option<Box<Bytes>>,
    pub(super) head: Option<Head>,
    watch: Watch,
    pub(super) tally: Tally,
    pub(super) bytes: u64,
    first_byte: bool,
    // When the last piece passed that carried something, and the longest wait for one after another.
    last_token: Option<Instant>,
    pub(super) longest_gap: Option<Duration>,
    /// Of a client that left while its answer is read on.
    pub(super) left: Option<Box<Left>>,
    /// Where the end is to wait until the record is kept.
    pub(super) gate: Option<Box<Gate>>,
}

// There is one for each open stream: it must not grow unnoticed.
const _: () = assert!(size_of::<Metering>() + size_of::<Events>() + size_of::<Large>() <= 1088);

/// What is kept of the head.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) stream: bool,
    /// Whether the pieces of the stream are read, so that there is more than its size to go by.
    pub(super) counted: bool,
    pub(super) request_id: Option<Arc<str>>,
    /// The length that was promised.
    pub(super) length: Option<u64>,
}

/// How the body is read.
enum Watch {
    /// Not at all.
    Opaque,
    /// As one JSON object.
    Json(TopLevel),
    /// As a stream of events or lines.
    Events(Box<Events>),
    /// From a copy that is unpacked.
    Packed(Packed),
}

/// The longest request id of a backend that is kept, in bytes.
const MAX_REQUEST_ID: usize = 256;

// === impl Metering ===

impl Metering {
    pub(super) fn new(exchange: Arc<Exchange>, method: &Method, path: &str, rules: Arc<Rules>) -> Self {
        let gate = exchange.take_end_hold().map(|hold| Box::new(Gate::new(hold)));
        Self {
            exchange,
            method: method.clone(),
            path: path.into(),
            rules,
            body: None,
            head: None,
            watch: Watch::Opaque,
            tally: Tally::default(),
            bytes: 0,
            first_byte: false,
            last_token: None,
            longest_gap: None,
            left: None,
            gate,
        }
    }

    /// The head has come.
    pub(super) fn head(&mut self, head: &mut Parts) {
        let kind = media_type(&head.headers).unwrap_or_default();
        let encoding = head.headers.get(CONTENT_ENCODING).map_or(&b"identity"[..], http::HeaderValue::as_bytes);
        let plain = encoding.eq_ignore_ascii_case(b"identity");
        let packed = Coding::of(encoding);
        self.tally.dialect = Dialect::of(self.endpoint());
        let is_events = is_type(kind, "text/event-stream");
        let is_json = is_json(kind);
        let is_lines = is_type(kind, "application/x-ndjson");
        let ours = is_events && plain && self.exchange.served().is_some_and(|target| target.inject_usage);
        if ours {
            head.headers.remove(CONTENT_LENGTH);
        }
        if head.status.is_success() {
            self.tally.head(&head.headers);
            if plain || packed.is_some() {
                self.listen(is_events || is_lines);
            }
        } else {
            self.body = None;
        }
        let members = || self.tally.dialect.members();
        let is_open_ended = !head.headers.contains_key(CONTENT_LENGTH);
        let events = |framing| Watch::Events(Box::new(Events::new(framing, is_open_ended)));
        self.watch = match plain {
            true if is_events => events(Framing::Events(Scanner::new(), ours.then(Withhold::default))),
            true if is_lines => events(Framing::Lines(Lines::default())),
            true if is_json => Watch::Json(members()),
            _ => Watch::Opaque,
        };
        if let Some(coding) = packed {
            let unpacked = match () {
                () if is_events => Some(Plain::Events(Scanner::new())),
                () if is_lines => Some(Plain::Lines(Lines::default())),
                () => is_json.then(|| Plain::Json(members())),
            };
            if let Some(unpacked) = unpacked {
                self.watch = Watch::Packed(Packed::new(coding, unpacked, std::mem::take(&mut self.tally)));
            }
        }
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let dialect = Dialect::of(self.endpoint());
        if let Some(gate) = &mut self.gate {
            gate.head(length, dialect, is_lines);
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.gate = None;
        }
        let request_id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok());
        self.head = Some(Head {
            status: head.status,
            stream: is_events || is_lines,
            counted: (is_events || is_lines) && (plain || packed.is_some()),
            request_id: request_id.filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID).map(Into::into),
            length,
        });
    }

    /// Whether nothing is read of it.
    pub(super) fn is_opaque(&self) -> bool {
        matches!(self.watch, Watch::Opaque)
    }

    pub(super) fn see_first_byte(&mut self) {
        if !std::mem::replace(&mut self.first_byte, true) {
            self.exchange.set_first_byte();
        }
    }

    /// A piece passes that carries something of the answer.
    pub(super) fn see_token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => self.longest_gap = self.longest_gap.max(Some(now.duration_since(last))),
            None => self.exchange.set_first_token(),
        }
    }

    fn packed(&mut self, mut packed: Packed, data: &[u8], out: &mut Out) {
        match packed.feed(data) {
            Ok(token) => {
                if let Some(gate) = &mut self.gate {
                    let tally = packed.so_far().0;
                    gate.see(tally.terminal || (tally.error.is_some() && !token), out);
                }
                self.watch = Watch::Packed(packed);
                if token {
                    self.see_token();
                }
            }
            // What has been found until now stands; beyond it there is only the size to go by.
            Err(_) => {
                self.tally = packed.finish(false).0;
                (self.tally.text_bytes, self.tally.heard) = (0, None);
                if let Some(head) = &mut self.head {
                    head.counted = false;
                }
            }
        }
    }

    /// What is still held goes on, unless it is the event to remove.
    fn finish(&mut self, ending: Ending<'_>, out: &mut Out) {
        let is_complete = matches!(ending, Ending::Complete);
        // What unpacks takes much memory, and the body may be kept for a while yet.
        let mut events = match std::mem::replace(&mut self.watch, Watch::Opaque) {
            Watch::Events(events) => events,
            Watch::Packed(packed) => {
                (self.tally, self.bytes) = packed.finish(is_complete);
                return;
            }
            other => {
                self.watch = other;
                return;
            }
        };
        let (tally, large) = (&mut self.tally, &mut events.large);
        let mut usage_event = false;
        let last = |event: Event<'_>| {
            usage_event = tally.split_event(&event, b"", large).usage_event;
        };
        match &mut events.framing {
            _ if !is_complete => {}
            Framing::Events(scanner, _) => scanner.finish(last),
            Framing::Lines(lines) => lines.finish(last),
        }
        if let Framing::Events(_, Some(withhold)) = &mut events.framing {
            withhold.end(usage_event, out);
            if withhold.removed() > 0 {
                metrics::counter!(WITHHELD).increment(withhold.removed());
            }
        }
        self.watch = Watch::Events(events);
    }

    /// The same, to be told more.
    pub(super) fn tally(&mut self) -> &mut Tally {
        match &mut self.watch {
            Watch::Packed(packed) => packed.tally(),
            _ => &mut self.tally,
        }
    }

    /// What is known of the answer, and in how many bytes.
    pub(super) fn so_far(&self) -> (&Tally, u64) {
        match &self.watch {
            Watch::Packed(packed) => packed.so_far(),
            _ => (&self.tally, self.bytes),
        }
    }

    /// Whether a client whose answer's end is held has waited long enough for more of it.
    fn is_held_long_enough(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.is_over())
    }
}

impl Shape for Metering {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        self.bytes += data.len() as u64;
        if let Some(gate) = &mut self.gate {
            if !gate.admit(&data, out) {
                return;
            }
        } else if self.left.is_some() {
            // What was held for whoever has left.
            out.release();
        }
        match std::mem::replace(&mut self.watch, Watch::Opaque) {
            Watch::Events(mut events) => {
                self.events(&mut events, data, out);
                self.watch = Watch::Events(events);
                return;
            }
            Watch::Json(mut scanner) => {
                scanner.feed(&data, |member, value| self.tally.member(member, value));
                self.tally.plain_text(&data);
                self.watch = Watch::Json(scanner);
            }
            Watch::Packed(packed) => self.packed(packed, &data, out),
            Watch::Opaque => {}
        }
        if !data.is_empty() {
            self.see_first_byte();
        }
        out.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        let ending = self.true_ending(ending);
        self.finish(ending, out);
        if !self.tell(ending) {
            self.gate = None;
        }
    }

    /// Asked when nothing comes. A backend that goes on after it has said that nothing follows need not be heard out.
    fn poll_silent(&mut self, cx: &mut Context<'_>, _: &mut Out) -> Poll<Result<(), BoxError>> {
        let Some(gate) = &mut self.gate else { return Poll::Pending };
        if !gate.is_over() {
            ready!(gate.poll_over(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn holds_end(&self) -> bool {
        self.gate.is_some()
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Some(gate) = &mut self.gate else { return Poll::Ready(Ok(())) };
        let result = ready!(gate.poll(cx));
        self.gate = None;
        Poll::Ready(result)
    }

    /// Asked when the body failed, and where it goes on behind its last event. Of events `llmproxy-sse` has said the first
    /// before; what the last line is, only JSON tells.
    fn is_over(&self) -> bool {
        if self.is_held_long_enough() {
            return true;
        }
        let Watch::Events(events) = &self.watch else { return false };
        let is_between = matches!(events.framing, Framing::Lines(_)) && events.begins_with.is_none();
        is_between && events.is_open_ended && self.tally.terminal && self.said_error().is_none()
    }

    fn changes_length(&self) -> bool {
        matches!(&self.watch, Watch::Events(events) if matches!(events.framing, Framing::Events(_, Some(_))))
    }
}

impl std::fmt::Debug for Metering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metering").field("exchange", &self.exchange).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
