//! Whether another attempt is made, and when.

use std::{io, time::Duration};

use http::{HeaderMap, StatusCode, header};
use llmproxy_core::{BoxError, End, Ended, cause_ref};

use crate::{
    config::{RetryConfig, RetryOn},
    date,
};

/// Why an attempt gave no answer, or none that the client should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There was no connection: the backend has not seen the request.
    Connect,
    /// The connection broke before the answer was the client's.
    Reset,
    /// The same, and the backend takes no other one: it is gone, and the request may be why.
    Died,
    /// What came is no HTTP: whoever is there, the request has not killed it.
    Protocol,
    /// A limit of time was passed.
    Timeout,
    /// The client's side failed, or the proxy is stopping; the backend did nothing wrong.
    NotTheBackend,
    /// The backend refused the credentials that the proxy gave it.
    Credentials,
    /// An answer that says that the backend, now, can't.
    Status(StatusCode),
}

/// One condition of `retry_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    Connect,
    Reset,
    Timeout,
    ServerError,
    Status(StatusCode),
}

/// What a [`RetryConfig`] comes to.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) max_retries: u32,
    initial_wait: Duration,
    max_wait: Duration,
    multiplier: f64,
    /// The share of the requests that may be followed by another attempt.
    pub(crate) budget: f64,
    triggers: Vec<Trigger>,
}

// === impl Failure ===

impl Failure {
    /// What kind of failure `error` is, by what its source chain says: an [`Ended`] says so itself; a connection that
    /// never came to be is an [`io::Error`] of one of a few kinds, and so is nonsense; anything else broke later. Inside of
    /// an `Ended` the former is about a second connection, which there was none of after the first had broken.
    pub(crate) fn of(error: &BoxError) -> Self {
        match Ended::of(&**error) {
            End::Timeout => return Self::Timeout,
            End::ClientGone | End::Shutdown | End::ProxyFailed | End::ProxyDied => return Self::NotTheBackend,
            End::Complete | End::BackendFailed => {}
        }
        match cause_ref::<io::Error>(&**error).map(io::Error::kind) {
            Some(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NotConnected
                | io::ErrorKind::AddrNotAvailable,
            ) => {
                if cause_ref::<Ended>(&**error).is_some() {
                    Self::Died
                } else {
                    Self::Connect
                }
            }
            Some(io::ErrorKind::InvalidData) => Self::Protocol,
            _ => Self::Reset,
        }
    }

    /// Whether it speaks against the backend: an answer that blames the request, or a client that left, does not.
    pub(crate) fn is_the_backends(self) -> bool {
        match self {
            Self::Connect | Self::Reset | Self::Died | Self::Protocol | Self::Timeout | Self::Credentials => true,
            Self::NotTheBackend => false,
            Self::Status(status) => status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Whether nobody is there to connect to.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Connect | Self::Died)
    }

    /// Whether the backend may have died of the request.
    pub(crate) fn may_be_deadly(self) -> bool {
        matches!(self, Self::Reset | Self::Died)
    }

    /// The name in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset | Self::Died => "reset",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::NotTheBackend => "client",
            Self::Credentials => "credentials",
            Self::Status(status) => match status.as_u16() {
                429 => "429",
                502 => "502",
                503 => "503",
                504 => "504",
                500..=599 => "5xx",
                _ => "status",
            },
        }
    }
}

// === impl Trigger ===

impl Trigger {
    pub(crate) fn parse(word: &RetryOn) -> Result<Self, String> {
        Ok(match word.as_str() {
            "connect" => Self::Connect,
            "reset" => Self::Reset,
            "timeout" => Self::Timeout,
            "5xx" => Self::ServerError,
            other => match other.parse().map(|code: u16| (code, StatusCode::from_u16(code))) {
                // An answer below 400 is one; there is nothing to try again for.
                Ok((400..=599, Ok(status))) => Self::Status(status),
                _ => {
                    return Err(format!(
                        "`{other}` is nothing to retry on; use connect, reset, timeout, 5xx or a status from 400 to 599"
                    ));
                }
            },
        })
    }

    fn matches(self, failure: Failure) -> bool {
        match (self, failure) {
            (Self::Connect, Failure::Connect | Failure::Died)
            | (Self::Reset, Failure::Reset | Failure::Died | Failure::Protocol)
            | (Self::Timeout, Failure::Timeout) => true,
            (Self::ServerError, Failure::Status(status)) => status.is_server_error(),
            (Self::Status(wanted), Failure::Status(status)) => wanted == status,
            _ => false,
        }
    }
}

// === impl Retry ===

impl Retry {
    /// Words that are none (the configuration was not validated) are passed over.
    pub(crate) fn new(config: &RetryConfig) -> Self {
        Self {
            max_retries: if config.enabled { config.max_retries } else { 0 },
            initial_wait: config.initial_wait,
            max_wait: config.max_wait,
            multiplier: config.multiplier,
            budget: config.budget,
            triggers: config.retry_on.iter().filter_map(|word| Trigger::parse(word).ok()).collect(),
        }
    }

    /// Whether another attempt may follow `failure`. Wrong credentials of ours are never the client's to suffer from,
    /// and the backend has done nothing for them, so they need no permission.
    pub(crate) fn is_wanted(&self, failure: Failure) -> bool {
        failure == Failure::Credentials || self.triggers.iter().any(|trigger| trigger.matches(failure))
    }

    /// How long to wait before a backend that has failed is asked again, for the `nth` time (from 0); at least `floor`,
    /// what the backend itself asked for. `None` where that is longer than anyone waits here: then the client is told.
    pub(crate) fn wait(&self, nth: u32, floor: Duration) -> Option<Duration> {
        if floor > self.max_wait {
            return None;
        }
        let factor = self.multiplier.powi(i32::try_from(nth).unwrap_or(i32::MAX));
        let wait = Duration::try_from_secs_f64(self.initial_wait.as_secs_f64() * factor).unwrap_or(self.max_wait);
        // Between half and the whole, so that requests that failed together do not come back together; nor do they where
        // all were told the same time.
        let part = fastrand::f64() / 2.0;
        let wait = wait.min(self.max_wait).mul_f64(0.5 + part);
        Some(wait.max(floor + self.initial_wait.mul_f64(part)).min(self.max_wait))
    }
}

/// What an answer asks for by `Retry-After`, in seconds or up to a date. That is by the clock that wrote the answer's own
/// date, whatever ours says; without one it says nothing.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let asked = text(header::RETRY_AFTER)?.trim();
    if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // What is too much for the number would be too much for a clock: it is very long, and that is all there is to know.
        return Some(Duration::from_secs(asked.parse().unwrap_or(u32::MAX).into()));
    }
    let wait = date::seconds(asked)? - date::seconds(text(header::DATE)?)?;
    Some(Duration::from_secs(u64::try_from(wait).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Retry {
        Retry::new(&RetryConfig::default())
    }

    #[test]
    fn a_refused_connection_is_told_from_one_that_broke() {
        let of = |kind: io::ErrorKind| Failure::of(&BoxError::from(io::Error::from(kind)));
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Failure::Connect);
        assert_eq!(of(io::ErrorKind::HostUnreachable), Failure::Connect);
        assert_eq!(of(io::ErrorKind::NotConnected), Failure::Connect);
        assert_eq!(of(io::ErrorKind::ConnectionReset), Failure::Reset);
        assert_eq!(of(io::ErrorKind::InvalidData), Failure::Protocol);
        assert_eq!(Failure::of(&"whatever".into()), Failure::Reset);
    }

    #[test]
    fn an_error_that_says_how_it_ended_is_believed() {
        let of = |end| Failure::of(&BoxError::from(Ended::new(end, "x")));
        assert_eq!(of(End::Timeout), Failure::Timeout);
        assert_eq!(of(End::ClientGone), Failure::NotTheBackend);
        assert_eq!(of(End::BackendFailed), Failure::Reset);
    }

    #[test]
    fn whoever_died_with_a_request_is_told_from_whoever_was_not_there() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let died = Failure::of(&BoxError::from(Ended::new(End::BackendFailed, refused)));
        assert_eq!(died, Failure::Died);
        // Both words of `retry_on` mean it.
        for (word, expected) in [("connect", true), ("reset", true), ("503", false)] {
            let config = RetryConfig { retry_on: vec![RetryOn::new(word)], ..RetryConfig::default() };
            assert_eq!(Retry::new(&config).is_wanted(died), expected, "{word}");
        }
    }

    #[test]
    fn a_timeout_is_not_retried_unless_it_is_asked_for() {
        assert!(!retry().is_wanted(Failure::Timeout));
        let config = RetryConfig { retry_on: vec![RetryOn::new("timeout")], ..RetryConfig::default() };
        assert!(Retry::new(&config).is_wanted(Failure::Timeout));
        assert!(!Retry::new(&config).is_wanted(Failure::Connect));
    }

    #[test]
    fn statuses_are_retried_as_listed() {
        let status = |code| Failure::Status(StatusCode::from_u16(code).unwrap());
        assert!(retry().is_wanted(status(503)));
        assert!(!retry().is_wanted(status(500)));
        assert!(!retry().is_wanted(status(429)));
        let config = RetryConfig { retry_on: ["5xx", "429"].map(RetryOn::new).to_vec(), ..RetryConfig::default() };
        let retry = Retry::new(&config);
        assert!(retry.is_wanted(status(500)) && retry.is_wanted(status(429)) && !retry.is_wanted(status(404)));
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        let retry = retry();
        for (nth, whole) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 10), (400, 10)] {
            let (wait, whole) = (retry.wait(nth, Duration::ZERO).unwrap(), Duration::from_secs(whole));
            assert!(wait >= whole / 2 && wait <= whole, "{nth}: {wait:?}");
        }
    }

    #[test]
    fn a_backend_that_asks_for_patience_gets_it_or_is_not_asked_again() {
        let seconds = Duration::from_secs_f64;
        for _ in 0..100 {
            let wait = retry().wait(0, seconds(7.0)).unwrap();
            assert!(wait >= seconds(7.0) && wait <= seconds(7.5), "{wait:?}");
        }
        assert_eq!(retry().wait(0, seconds(10.0)), Some(seconds(10.0)));
        assert_eq!(retry().wait(0, seconds(10.1)), None);
    }

    #[test]
    fn what_no_clock_can_tell_is_very_long_and_not_at_once() {
        for text in ["4294967296", "18446744073709551615", "18446744073709551616", &"9".repeat(1000)] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            let asked = retry_after(&headers).expect("it is a number");
            assert!(tokio::time::Instant::now().checked_add(asked).is_some(), "{text}");
            assert_eq!(retry().wait(0, asked), None, "{text}");
        }
        for text in ["", "+5", "-5", "5.5", "0x5"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers), None, "{text}");
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_up_to_a_date() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(header::RETRY_AFTER, " 12 ".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(12)));
        headers.insert(header::RETRY_AFTER, "Fri, 31 Dec 1999 23:59:59 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers), None, "by which clock?");
        for (date, expected) in
            [("23:59:29", Some(30)), ("23:59:59", Some(0)), ("23:58:59", Some(60)), ("25:00:00", None)]
        {
            headers.insert(header::DATE, format!("Fri, 31 Dec 1999 {date} GMT").parse().unwrap());
            assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{date}");
        }
        headers.insert(header::DATE, "Sat, 01 Jan 2000 00:00:29 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::ZERO), "it has passed");
    }
}
