//! Sending one record until it is taken or given up.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header::RETRY_AFTER};
use jiff::{Timestamp, fmt::rfc2822};
use llmproxy_core::{BoxError, HttpClient};

use crate::webhook::Webhook;

/// The wait before the second try, doubled for each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A receiver that wants more patience than this gets this much.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Why a record was given up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenUp {
    /// For a metric's label.
    pub(crate) reason: &'static str,
    /// For the log.
    pub(crate) why: String,
}

/// What came of one try.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    /// May pass, perhaps after the time that the receiver asked for.
    Again(String, Option<Duration>),
    /// Will be refused again, however often it is sent.
    Refused(String),
}

/// Sends `body` by `webhook`, which is looked at anew before each try.
pub(crate) async fn deliver(
    client: &HttpClient,
    webhook: impl Fn() -> std::sync::Arc<Webhook>,
    body: Bytes,
) -> Result<(), GivenUp> {
    let mut tries = 0;
    loop {
        let webhook = webhook();
        let sent = tokio::time::timeout(webhook.timeout, client.send(webhook.request(body.clone()))).await;
        let verdict = match sent {
            Ok(answer) => judge(answer),
            Err(_) => Verdict::Again(format!("no answer within {:?}", webhook.timeout), None),
        };
        let (why, retry_after) = match verdict {
            Verdict::Taken => return Ok(()),
            Verdict::Refused(why) => return Err(GivenUp { reason: "refused", why }),
            Verdict::Again(why, _) if tries >= webhook.retry => return Err(GivenUp { reason: "retries", why }),
            Verdict::Again(why, retry_after) => (why, retry_after),
        };
        tries += 1;
        let wait = retry_after.unwrap_or_default().max(backoff(tries, fastrand::f64()));
        tracing::debug!(%why, ?wait, tries, "a usage record was not taken and will be sent again");
        tokio::time::sleep(wait).await;
    }
}

fn judge(answer: Result<Response<Bytes>, BoxError>) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Verdict::Again(error.to_string(), None),
    };
    let status = answer.status();
    let why = || format!("the receiver answered {status}");
    match status {
        _ if status.is_success() => Verdict::Taken,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Again(why(), retry_after(answer.headers()))
        }
        _ if status.is_server_error() => Verdict::Again(why(), retry_after(answer.headers())),
        _ => Verdict::Refused(why()),
    }
}

/// Seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
            Duration::try_from(until.duration_since(Timestamp::now())).ok()?
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// From half of the step to all of it: many that failed together must not come back together.
fn backoff(tries: u32, random: f64) -> Duration {
    let step = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries - 1)).min(LONGEST_WAIT);
    step.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&str>) -> Result<Response<Bytes>, BoxError> {
        let mut response = Response::builder().status(status);
        if let Some(value) = retry_after {
            response = response.header("retry-after", value);
        }
        Ok(response.body(Bytes::new()).unwrap())
    }

    #[test]
    fn only_what_may_pass_is_sent_again() {
        let check = |status: u16, expected: &str| {
            let verdict = match judge(answer(status, None)) {
                Verdict::Taken => "taken",
                Verdict::Again(..) => "again",
                Verdict::Refused(_) => "refused",
            };
            assert_eq!(verdict, expected, "{status}");
        };
        for status in [200, 201, 204] {
            check(status, "taken");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            check(status, "again");
        }
        for status in [301, 302, 400, 401, 403, 404, 410, 413, 422] {
            check(status, "refused");
        }
        assert_eq!(judge(Err("refused".into())), Verdict::Again("refused".into(), None));
    }

    #[test]
    fn a_receiver_may_ask_for_patience() {
        let check = |value: &str, expected: Option<u64>| {
            let Verdict::Again(_, wait) = judge(answer(429, Some(value))) else { panic!() };
            assert_eq!(wait, expected.map(Duration::from_secs), "{value}");
        };
        check("7", Some(7));
        check("100000", Some(300));
        check("soon", None);
        check("-1", None);
        check("Sun, 06 Nov 1994 08:49:37 GMT", None);
        check("Wed, 06 Nov 2999 08:49:37 GMT", Some(300));
    }

    #[test]
    fn waits_grow_up_to_a_limit() {
        assert_eq!(backoff(1, 0.0), Duration::from_millis(250));
        assert_eq!(backoff(1, 1.0), Duration::from_millis(500));
        assert_eq!(backoff(3, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(1000, 1.0), Duration::from_secs(30));
    }
}
