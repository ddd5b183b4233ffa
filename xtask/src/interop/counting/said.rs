//! What an answer says, plain or streamed.

use std::collections::BTreeMap;

use serde_json::Value;

/// The events of a stream that comes in pieces.
#[derive(Default)]
pub(super) struct Events(Vec<u8>);

/// What a client was given of one answer.
#[derive(Default)]
pub(super) struct Said {
    /// The text of each choice.
    pub(super) texts: BTreeMap<u64, String>,
    /// Whether there was more than text.
    pub(super) has_calls: bool,
}

// === impl Events ===

impl Events {
    /// The events that have ended with `piece`, the empty line behind each included.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = memchr::memmem::find(&self.0, b"\n\n") {
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            events.push(String::from_utf8_lossy(&event).into_owned());
        }
        events
    }

    /// The JSON in an event.
    pub(super) fn json(event: &str) -> Option<Value> {
        serde_json::from_str(event.strip_prefix("data: ")?).ok()
    }
}

// === impl Said ===

impl Said {
    /// Takes a plain answer, or the next event of a stream.
    pub(super) fn add(&mut self, json: &Value) {
        for choice in json["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or_default();
            let message = if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
            let text = self.texts.entry(index).or_default();
            text.push_str(message["content"].as_str().unwrap_or_default());
            self.has_calls |= message["tool_calls"].is_array();
        }
    }
}

/// The text in an event.
pub(super) fn text_of(json: &Value) -> String {
    let mut said = Said::default();
    said.add(json);
    said.texts.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_at_any_seam() {
        let stream = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
        for at in 0..stream.len() {
            let mut events = Events::default();
            let mut all = events.push(&stream.as_bytes()[..at]);
            all.extend(events.push(&stream.as_bytes()[at..]));
            assert_eq!(all.concat(), stream);
            assert_eq!(text_of(&Events::json(&all[0]).unwrap()), "a");
            assert_eq!(Events::json(&all[1]), None);
        }
    }
}
