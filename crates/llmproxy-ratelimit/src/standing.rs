//! How a caller stands with its limits, and the headers that say so.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header::RETRY_AFTER};

/// One limit over time, as a caller stands with it: of requests or of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The limit, per second or per minute.
    pub limit: u64,
    /// How much may come at once now.
    pub remaining: u64,
    /// How long until all of it may come at once again.
    pub reset: Duration,
}

/// How a caller stands: of each kind of limit the one that leaves it least.
///
/// ```
/// use std::time::Duration;
/// use llmproxy_ratelimit::{Standing, Window};
///
/// let requests = Some(Window { limit: 60, remaining: 59, reset: Duration::from_secs(1) });
/// let headers: http::HeaderMap = Standing { requests, tokens: None }.headers().collect();
/// assert_eq!(headers["x-ratelimit-remaining-requests"], "59");
/// assert_eq!(headers["x-ratelimit-reset-requests"], "1s");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of the limits of requests, the caller's own and the global ones.
    pub requests: Option<Window>,
    /// Of the budgets of tokens.
    pub tokens: Option<Window>,
}

/// A header with its value.
pub(crate) type Header = (HeaderName, HeaderValue);

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];

const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

// === impl Standing ===

impl Standing {
    /// The headers that tell a client: `X-RateLimit-Limit` and `-Remaining` of requests, or of tokens where only those
    /// are limited, and OpenAI's of requests and of tokens. None of a kind that has no limit.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let shortest = self.requests.or(self.tokens).into_iter().flat_map(short);
        let requests = self.requests.into_iter().flat_map(Window::requests);
        shortest.chain(requests).chain(self.tokens.into_iter().flat_map(Window::tokens))
    }
}

// === impl Window ===

impl Window {
    /// OpenAI's headers for requests.
    pub(crate) fn requests(self) -> [Header; 3] {
        self.named(REQUESTS)
    }

    /// OpenAI's headers for tokens.
    pub(crate) fn tokens(self) -> [Header; 3] {
        self.named(TOKENS)
    }

    /// Of two, the one that leaves less.
    pub(crate) fn tighter(self, other: Self) -> Self {
        if (other.remaining, other.limit) < (self.remaining, self.limit) { other } else { self }
    }

    fn named(self, [limit, remaining, reset]: [HeaderName; 3]) -> [Header; 3] {
        let value = HeaderValue::try_from(go_duration(self.reset)).expect("digits and units are visible ASCII");
        [(limit, number(self.limit)), (remaining, number(self.remaining)), (reset, value)]
    }
}

/// `X-RateLimit-Limit` and `X-RateLimit-Remaining`.
pub(crate) fn short(window: Window) -> [Header; 2] {
    [(LIMIT, number(window.limit)), (REMAINING, number(window.remaining))]
}

/// A number as a header has it: the library's own conversion takes three times as long, and every answer has eight of them.
fn number(mut number: u64) -> HeaderValue {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return HeaderValue::from_bytes(&digits[at..]).expect("digits are visible ASCII");
        }
    }
}

/// `Retry-After` in whole seconds, rounded up: a client that comes back by it must not come too early.
pub(crate) fn retry_after(wait: Duration) -> Header {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    (RETRY_AFTER, seconds.max(1).into())
}

/// A duration as Go writes it, and as OpenAI's clients expect: `20ms`, `1.5s`, `6m0s`. Rounded up to a millisecond.
pub(crate) fn go_duration(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, in_minute) = (millis / 60_000, millis % 60_000);
    if millis < 1000 {
        return if millis == 0 { "0s".into() } else { format!("{millis}ms") };
    }
    let seconds = match in_minute % 1000 {
        0 => format!("{}s", in_minute / 1000),
        part => format!("{}.{}s", in_minute / 1000, format!("{part:03}").trim_end_matches('0')),
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_elsewhere() {
        for value in [0, 9, 10, 1_000_000, u64::MAX] {
            assert_eq!(number(value), HeaderValue::from(value));
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        let check = |millis, expected: &str| assert_eq!(go_duration(Duration::from_millis(millis)), expected);
        check(0, "0s");
        check(20, "20ms");
        check(1000, "1s");
        check(1500, "1.5s");
        check(1050, "1.05s");
        check(60_000, "1m0s");
        check(360_000, "6m0s");
        check(3_661_000, "1h1m1s");
        assert_eq!(go_duration(Duration::from_nanos(1)), "1ms");
    }

    #[test]
    fn retry_after_is_never_too_early() {
        let check = |millis, expected: u64| {
            assert_eq!(retry_after(Duration::from_millis(millis)).1, HeaderValue::from(expected));
        };
        check(0, 1);
        check(1, 1);
        check(1000, 1);
        check(1001, 2);
    }

    #[test]
    fn a_kind_without_a_limit_has_no_headers() {
        let window = Window { limit: 60, remaining: 59, reset: Duration::from_secs(1) };
        assert_eq!(Standing::default().headers().count(), 0);
        let names = |standing: Standing| standing.headers().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(Standing { requests: Some(window), tokens: None }).len(), 5);
        let tokens = names(Standing { requests: None, tokens: Some(window) });
        let expected = [
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ];
        assert_eq!(tokens, expected);
    }
}
