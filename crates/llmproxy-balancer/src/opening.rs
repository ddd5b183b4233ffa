//! How a stream begins: with an answer, or with an error that came too late for a status.

use serde_json::Value;

/// How an event begins that tells an error, without white space. Only for one that does not come in one piece.
const ERRORS: [&[u8]; 3] = [br#"{"error":"#, br#"{"object":"error""#, br#"{"type":"error""#];
/// How the lines of an event stream begin; the first is a comment.
const FIELDS: [&[u8]; 6] = [b":", b"data:", b"event:", b"id:", b"retry:", b"error:"];
/// A line that is longer is not waited for.
const MAX_LINE: usize = 4096;
/// What servers call an error that is the request's own, where they give it no number.
const REQUESTS_OWN: [&str; 2] = ["invalid_request_error", "BadRequestError"];

/// What the first event of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Some of the answer, or whatever else is no error.
    Answer,
    /// An error.
    Error,
    /// An error that blames the request.
    Blame,
}

/// Reads a stream up to its first event, as lines of an event stream or of JSON.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// The line that is not at its end.
    rest: Vec<u8>,
    /// Whether the event is named an error.
    is_named: bool,
}

/// What one line says of the event.
enum Line {
    Says(Opening),
    /// Nothing: a comment, or a field that carries none of it.
    Nothing,
    /// There must be more of it.
    Unfinished,
}

// === impl Beginning ===

impl Beginning {
    /// Reads on in `piece`; `None` where its event has not come yet.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Option<Opening> {
        let mut joined = std::mem::take(&mut self.rest);
        let mut text = piece;
        if !joined.is_empty() {
            joined.extend_from_slice(piece);
            text = &joined;
        }
        while !text.is_empty() {
            let end = text.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let line = &text[..end.unwrap_or(text.len())];
            match self.line(line, end.is_some()) {
                Line::Says(opening) => return Some(opening),
                Line::Nothing => {}
                Line::Unfinished if line.len() > MAX_LINE => return Some(self.unread(line)),
                Line::Unfinished => {
                    self.rest = line.to_vec();
                    return None;
                }
            }
            text = &text[end.map_or(text.len(), |end| end + 1)..];
        }
        None
    }

    /// What it is of a stream that has ended; `None` where it has no event.
    pub(crate) fn finish(mut self) -> Option<Opening> {
        let rest = std::mem::take(&mut self.rest);
        match self.line(&rest, true) {
            Line::Says(opening) => Some(opening),
            Line::Nothing | Line::Unfinished => None,
        }
    }

    fn line(&mut self, line: &[u8], is_whole: bool) -> Line {
        let value = |field: &[u8]| line.strip_prefix(field).map(<[u8]>::trim_ascii);
        if let Some(data) = value(b"data:").or_else(|| line.starts_with(b"{").then_some(line)) {
            return self.data(data, is_whole);
        }
        let is_field = |field: &&[u8]| line.starts_with(field) || !is_whole && field.starts_with(line);
        if !line.is_empty() && !FIELDS.iter().any(is_field) {
            // It is none of either, so whatever comes is what was asked for.
            return Line::Says(Opening::Answer);
        }
        if !is_whole {
            return Line::Unfinished;
        }
        if value(b"error:").is_some() {
            // So did older servers of llama.cpp.
            return Line::Says(Opening::Error);
        }
        self.is_named |= value(b"event:").is_some_and(|name| name == b"error");
        Line::Nothing
    }

    fn data(&self, data: &[u8], is_whole: bool) -> Line {
        if is_whole {
            return Line::Says(self.whole(data));
        }
        let begun: Vec<u8> = compact(data).collect();
        let may_be = |error: &&[u8]| error.starts_with(&begun) || begun.starts_with(error);
        if self.is_named || ERRORS.iter().any(may_be) { Line::Unfinished } else { Line::Says(Opening::Answer) }
    }

    fn whole(&self, data: &[u8]) -> Opening {
        // Nearly all begin otherwise, and are not to be parsed.
        if !self.is_named && !data.windows(7).any(|word| word == br#""error""#) {
            return Opening::Answer;
        }
        let Ok(event) = serde_json::from_slice::<Value>(data) else { return self.unread(data) };
        let error = &event["error"];
        let is_error = |key: &str| event[key] == "error";
        if error.is_null() && !is_error("object") && !is_error("type") && !self.is_named {
            return Opening::Answer;
        }
        let says = |key: &str| [&error[key], &event[key]].into_iter().find(|value| !value.is_null());
        let numbers = ["code", "status", "status_code"].map(|key| says(key).and_then(Value::as_u64));
        let is_blame = match numbers.into_iter().flatten().find(|number| (400..600).contains(number)) {
            // It has enough to do, or waited too long.
            Some(408 | 429) => false,
            Some(number) => number < 500,
            None => says("type").and_then(Value::as_str).is_some_and(|kind| REQUESTS_OWN.contains(&kind)),
        };
        if is_blame { Opening::Blame } else { Opening::Error }
    }

    /// Of one that can't be read as a whole.
    fn unread(&self, data: &[u8]) -> Opening {
        let data = data.strip_prefix(b"data:").unwrap_or(data);
        let begun: Vec<u8> = compact(data).take(MAX_LINE).collect();
        let is_error = self.is_named || ERRORS.iter().any(|error| begun.starts_with(error));
        if is_error { Opening::Error } else { Opening::Answer }
    }
}

fn compact(data: &[u8]) -> impl Iterator<Item = u8> {
    data.iter().copied().filter(|byte| !byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However it is cut into pieces.
    fn check(stream: &str, expected: Option<Opening>) {
        for size in 1..=stream.len() {
            let mut beginning = Beginning::default();
            let opening = stream.as_bytes().chunks(size).find_map(|piece| beginning.read(piece));
            assert_eq!(opening, expected, "{stream} in pieces of {size}");
        }
    }

    #[test]
    fn an_answer_is_no_error_whatever_it_says() {
        for stream in [
            "data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"content\":\"an \\\"error\\\"\"}}]}\n\n",
            "data: {\"error\":null,\"choices\":[]}\n\n",
            "data: [DONE]\n\n",
            "event: message_start\ndata: {\"type\":\"message_start\"}\n\n",
            ": hello\r\n\r\nid: 1\r\ndata:{\"object\":\"chat.completion.chunk\"}\r\n\r\n",
            "hello\n",
            "{\"model\":\"m\",\"response\":\"Hi\"}\n",
            "data: {\"type\":\"response.created\",\"response\":{\"error\":null}}\n\n",
        ] {
            check(stream, Some(Opening::Answer));
        }
    }

    #[test]
    fn an_error_is_one_in_every_servers_words() {
        for stream in [
            "data: {\"error\": {\"message\": \"engine dead\", \"type\": \"InternalServerError\", \"code\": 500}}\n\n",
            ": wait\n\ndata:{\"object\":\"error\",\"message\":\"no\"}\n\n",
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
            "event: error\ndata: out of memory\n\n",
            "error: {\"code\":500}\n\n",
            "{\"error\":\"llama runner process has terminated\"}\n",
            "data: {\"error\":{\"code\":429}}\n\n",
            "data: {\"error\": {\"message\": \n\n",
        ] {
            check(stream, Some(Opening::Error));
        }
    }

    #[test]
    fn an_error_may_blame_the_request() {
        for stream in [
            "data: {\"error\": {\"message\": \"too long\", \"type\": \"BadRequestError\", \"code\": 400}}\n\n",
            "data: {\"object\":\"error\",\"code\":404}\n\n",
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\"}}\n\n",
        ] {
            check(stream, Some(Opening::Blame));
        }
    }

    #[test]
    fn the_last_line_needs_no_end() {
        for (stream, expected) in [
            ("data: {\"error\":{\"code\":500}}", Some(Opening::Error)),
            ("event: error\ndata: {\"code\":400}", Some(Opening::Blame)),
            ("{\"error\":\"out of memory\"}", Some(Opening::Error)),
            ("{\"error\":null}", Some(Opening::Answer)),
            (": wait\n: wait", None),
            ("", None),
        ] {
            let mut beginning = Beginning::default();
            assert_eq!(beginning.read(stream.as_bytes()), None, "{stream}");
            assert_eq!(beginning.finish(), expected, "{stream}");
        }
    }

    #[test]
    fn comments_are_no_beginning_and_a_line_without_an_end_is_not_waited_for() {
        check(": one\n\n: two\n\n", None);
        let long = format!("data: {{\"error\": \"{}", "x".repeat(2 * MAX_LINE));
        assert_eq!(Beginning::default().read(long.as_bytes()), Some(Opening::Error));
        let long = format!(": {}", "x".repeat(2 * MAX_LINE));
        assert_eq!(Beginning::default().read(long.as_bytes()), Some(Opening::Answer));
    }
}
