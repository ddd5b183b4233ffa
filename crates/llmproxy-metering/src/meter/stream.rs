//! How a stream is read, event by event or line by line, as it passes.

use bytes::Bytes;
use llmproxy_core::body::Out;
use llmproxy_sse::{Event, Scanner};

use super::{Metering, gate::Cut};
use crate::answer::{Large, Lines, Verdict, Withhold};

/// An answer that comes as events or lines.
pub(super) struct Events {
    pub(super) framing: Framing,
    // The first byte behind the last complete event, to tell a comment from the beginning of more.
    pub(super) begins_with: Option<u8>,
    // Of events that come in several chunks, where they may be too large to be buffered whole.
    pub(super) large: Option<Box<Large>>,
    /// Whether no length was promised, so that the end can be given without the backend.
    pub(super) is_open_ended: bool,
}

/// What parts one event from the next.
pub(super) enum Framing {
    Events(Scanner, Option<Withhold>),
    Lines(Lines),
}

// === impl Metering ===

impl Metering {
    /// Reads the next chunk of a stream.
    pub(super) fn events(&mut self, events: &mut Events, data: Bytes, out: &mut Out) {
        let (mut begun, mut first_byte, mut token) = (0, false, false);
        let mut gate = self.gate.as_deref_mut();
        let mut judge = |event: &Event<'_>| {
            let seen = self.tally.split_event(event, &data[begun..event.end], &mut events.large);
            first_byte |= seen.data;
            token |= seen.delta;
            begun = event.end;
            events.begins_with = None;
            // A client that is told of an error sees no reason to wait for more.
            let is_last = self.tally.terminal || (self.tally.error.is_some() && !seen.delta);
            (seen.usage_event, is_last)
        };
        if let Framing::Events(scanner, Some(withhold)) = &mut events.framing {
            withhold.chunk(scanner, &data, out, |event| {
                let (usage_event, is_last) = judge(event);
                let held = gate.as_deref_mut().is_some_and(|gate| gate.saw(is_last));
                match usage_event {
                    true => Verdict::Remove,
                    false if held => Verdict::Hold,
                    false => Verdict::Pass,
                }
            });
        } else {
            let (mut cut, mut from) = (Cut::new(&data), 0);
            let on_event = |event: Event<'_>| {
                let (_, is_last) = judge(&event);
                if let Some(gate) = &mut gate {
                    gate.event(is_last, from, &mut cut, out);
                    from = event.end;
                }
            };
            match &mut events.framing {
                Framing::Events(scanner, _) => scanner.feed(&data, on_event),
                Framing::Lines(lines) => lines.feed(&data, on_event),
            }
            match gate {
                Some(gate) => gate.tail(from, cut, out),
                None => out.push(data.clone()),
            }
        }
        self.tally.begin_event(&data[begun..], &mut events.large);
        if events.begins_with.is_none() {
            events.begins_with = data[begun..].iter().copied().find(|byte| !matches!(byte, b'\r' | b'\n'));
        }
        if first_byte || events.begins_with.is_some_and(|byte| byte != b':') {
            self.see_first_byte();
        }
        if token {
            self.see_token();
        }
    }
}

// === impl Events ===

impl Events {
    pub(super) fn new(framing: Framing, is_open_ended: bool) -> Self {
        Self { framing, begins_with: None, large: None, is_open_ended }
    }
}
