//! What the load asks for and the mock answers, and how each answer is checked.

use memchr::memmem;
use tokio::time::Instant;

/// Answers without a stream; the length of a short one.
pub(crate) const JSON: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"It does what a proxy for web servers does, and knows what that one can not: tokens, models, streams, keys and fairness. An answer of this length is what a short question gets; it is the same each time, so that whoever asked can compare it byte by byte."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":210,"completion_tokens":52,"total_tokens":262}}"#;
/// The first bytes of each event, up to the time at which it was sent.
const PREFIX: &str = r#"data: {"id":"chatcmpl-bench","sent":""#;
const DIGITS: usize = 16;
const SUFFIX: &str = r#"","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}"#;
/// The event that ends the choice, up to the sum of all events before it.
const LAST: &str = r#"data: {"id":"chatcmpl-bench","sum":""#;
const LAST_SUFFIX: &str = r#"","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}"#;
/// What is sent only where the request asks for it, as a proxy that counts does.
const USAGE: &str = r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[],"usage":{"prompt_tokens":210,"completion_tokens":64,"total_tokens":274}}"#;
const DONE: &str = "data: [DONE]\n\n";

/// What the two answers say that they came to in all.
pub(crate) const JSON_TOKENS: u64 = 262;
pub(crate) const STREAM_TOKENS: u64 = 274;

/// What a request asks of the mock; written into its body, whose fields of other meaning a proxy may read or change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// By which both sides know it.
    pub(crate) id: u64,
    /// How many events; none for a JSON answer.
    pub(crate) events: u64,
    /// Microseconds from one to the next, or until a JSON answer comes; as fast as they are taken if 0.
    pub(crate) gap: u64,
    /// Events in each write.
    pub(crate) burst: u64,
    /// Whether the usage event is wanted.
    pub(crate) usage: bool,
}

/// The time that all the events' times count from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

/// The events of one stream, as they are made.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    sum: u64,
    sent: u64,
}

/// The events of one stream, as they come.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    /// The beginning of an event whose end has not come.
    begun: Vec<u8>,
    sum: u64,
    pub(crate) events: u64,
    summed: bool,
    done: bool,
}

// === impl Ask ===

impl Ask {
    /// A request's body, at least `size` bytes of it.
    pub(crate) fn body(&self, size: usize) -> String {
        let Self { id, events, gap, burst, .. } = self;
        let stream = if *events > 0 { r#""stream":true,"# } else { "" };
        let start = format!(
            r#"{{"model":"bench","user":"bench {id} {events} {gap} {burst}.",{stream}"messages":[{{"role":"user","content":""#
        );
        let words = "What does it do? ".repeat(size.saturating_sub(start.len()) / 17);
        format!("{start}{words}\"}}]}}")
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let start = memmem::find(body, b"\"bench ")? + 7;
        let end = start + memchr::memchr(b'.', &body[start..])?;
        let mut words = std::str::from_utf8(&body[start..end]).ok()?.split(' ').map(str::parse);
        let mut word = || words.next()?.ok();
        let (id, events, gap, burst) = (word()?, word()?, word()?, word()?);
        let usage = events > 0 && memmem::find(body, b"include_usage").is_some();
        Some(Self { id, events, gap, burst, usage })
    }
}

// === impl Clock ===

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

// === impl Sender ===

impl Sender {
    /// Appends one event that is sent at `now`.
    pub(crate) fn event(&mut self, now: u64, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(PREFIX.as_bytes());
        let mut digits = [b'0'; DIGITS];
        let mut rest = now;
        for digit in digits.iter_mut().rev() {
            *digit += u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
        out.extend_from_slice(&digits);
        out.extend_from_slice(SUFFIX.as_bytes());
        out.extend_from_slice(b"\n\n");
        self.sum = add(self.sum, &out[from..]);
        self.sent += 1;
    }

    /// Appends what comes after the last of them.
    pub(crate) fn end(&self, usage: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(last(self.sum).as_bytes());
        if usage {
            out.extend_from_slice(USAGE.as_bytes());
            out.extend_from_slice(b"\n\n");
        }
        out.extend_from_slice(DONE.as_bytes());
    }
}

// === impl Receiver ===

impl Receiver {
    /// Takes the next bytes; tells for each event that they complete when it was sent.
    pub(crate) fn take(&mut self, mut piece: &[u8], mut sent: impl FnMut(u64)) -> Result<(), String> {
        if !self.begun.is_empty() {
            // An event's end may itself be cut in two.
            let known = self.begun.len().saturating_sub(1);
            self.begun.extend_from_slice(piece);
            let Some(end) = memmem::find(&self.begun[known..], b"\n\n") else { return Ok(()) };
            let end = known + end + 2;
            let used = piece.len() - (self.begun.len() - end);
            let mut whole = std::mem::take(&mut self.begun);
            whole.truncate(end);
            self.event(&whole, &mut sent)?;
            piece = &piece[used..];
        }
        while let Some(end) = memmem::find(piece, b"\n\n") {
            let (event, rest) = piece.split_at(end + 2);
            self.event(event, &mut sent)?;
            piece = rest;
        }
        self.begun.extend_from_slice(piece);
        Ok(())
    }

    /// Whether all of `events` came, unchanged, and nothing else.
    pub(crate) fn finish(self, events: u64) -> Result<(), String> {
        match self {
            Self { done: true, summed: true, events: came, ref begun, .. } if came == events && begun.is_empty() => {
                Ok(())
            }
            _ => Err(format!("a stream of {events} events came to its end after {}, done: {}", self.events, self.done)),
        }
    }

    fn event(&mut self, event: &[u8], sent: &mut impl FnMut(u64)) -> Result<(), String> {
        if self.done {
            return Err("an event came after the last".to_owned());
        }
        if let Some(rest) = event.strip_prefix(PREFIX.as_bytes())
            && !self.summed
            && rest.len() > DIGITS
        {
            self.sum = add(self.sum, event);
            self.events += 1;
            sent(rest[..DIGITS].iter().fold(0, |number, digit| number * 10 + u64::from(digit.wrapping_sub(b'0'))));
            return Ok(());
        }
        if event.starts_with(LAST.as_bytes()) && !self.summed {
            self.summed = true;
            return match event == last(self.sum).as_bytes() {
                true => Ok(()),
                false => Err("the events of a stream are not those that were sent".to_owned()),
            };
        }
        if event == DONE.as_bytes() {
            self.done = true;
            return Ok(());
        }
        Err(format!("an event came that was not expected: {}", String::from_utf8_lossy(event)))
    }
}

fn last(sum: u64) -> String {
    format!("{LAST}{sum:016x}{LAST_SUFFIX}\n\n")
}

/// A sum that depends on every byte and on their order; what firefox hashes with, eight bytes at a time.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = sum;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        sum = (sum.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    for byte in rest {
        sum = (sum.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(events: u64, usage: bool) -> Vec<u8> {
        let (mut sender, mut out) = (Sender::default(), Vec::new());
        for now in 0..events {
            sender.event(now * 1_000_000_007, &mut out);
        }
        sender.end(usage, &mut out);
        out
    }

    fn receive(bytes: &[u8], step: usize, events: u64) -> Result<Vec<u64>, String> {
        let (mut receiver, mut times) = (Receiver::default(), Vec::new());
        for piece in bytes.chunks(step) {
            receiver.take(piece, |sent| times.push(sent))?;
        }
        receiver.finish(events).map(|()| times)
    }

    #[test]
    fn a_stream_is_known_again_however_it_is_cut() {
        let bytes = stream(3, false);
        for step in 1..=bytes.len() {
            assert_eq!(receive(&bytes, step, 3).unwrap(), [0, 1_000_000_007, 2_000_000_014], "{step}");
        }
    }

    #[test]
    fn whatever_is_not_as_it_was_sent_is_seen() {
        let bytes = stream(3, false);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(receive(&changed, 100, 3).is_err(), "{at}");
            assert!(receive(&bytes[..at], 100, 3).is_err(), "{at}");
        }
        assert!(receive(&bytes, 100, 4).is_err());
        assert!(receive(&stream(3, true), 100, 3).is_err(), "the usage event that nobody asked for");
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let ask = Ask { id: 7, events: 64, gap: 20_000, burst: 1, usage: false };
        let body = ask.body(1024);
        assert!((1000..1024).contains(&body.len()), "{}", body.len());
        assert_eq!(Ask::parse(body.as_bytes()), Some(ask));
        let asked = body.replacen('{', r#"{"stream_options":{"include_usage":true},"#, 1);
        assert_eq!(Ask::parse(asked.as_bytes()), Some(Ask { usage: true, ..ask }));
        assert_eq!(Ask::parse(b"{}"), None);
    }
}
