//! What the answer to a webhook means for what was sent.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header::RETRY_AFTER};
use jiff::{Timestamp, fmt::rfc2822};
use llmproxy_core::BoxError;

use crate::Verdict;

pub(crate) fn judge(answer: Result<Response<Bytes>, BoxError>) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Verdict::again(error),
    };
    let status = answer.status();
    let why = format!("the receiver answered {status}");
    match status {
        _ if status.is_success() => Verdict::Delivered,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Again { why, after: retry_after(answer.headers()) }
        }
        _ if status.is_server_error() => Verdict::Again { why, after: retry_after(answer.headers()) },
        // About what was sent.
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            Verdict::Refused { why }
        }
        // About the place, or who sends: the same for every record.
        _ => Verdict::RefusedAll { why },
    }
}

/// Seconds or a date (RFC 9110, 10.2.3). What is neither, or over, is nothing.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let until = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
            Duration::try_from(until.duration_since(Timestamp::now())).ok()
        }
    }
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
                Verdict::Delivered => "taken",
                Verdict::Again { .. } => "again",
                Verdict::Refused { .. } => "refused",
                Verdict::RefusedAll { .. } => "all refused",
            };
            assert_eq!(verdict, expected, "{status}");
        };
        for status in [200, 201, 204] {
            check(status, "taken");
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            check(status, "again");
        }
        for status in [400, 413, 422] {
            check(status, "refused");
        }
        for status in [301, 302, 307, 401, 402, 403, 404, 405, 406, 407, 409, 410, 415, 418] {
            check(status, "all refused");
        }
        assert_eq!(judge(Err("refused".into())), Verdict::again("refused"));
    }

    fn patience(value: &str) -> Option<Duration> {
        let Verdict::Again { after, .. } = judge(answer(429, Some(value))) else { panic!() };
        after
    }

    #[test]
    fn a_receiver_may_ask_for_patience() {
        let check = |value: &str, expected: Option<u64>| {
            assert_eq!(patience(value), expected.map(Duration::from_secs), "{value}");
        };
        check("7", Some(7));
        check(" 7 ", Some(7));
        check("100000", Some(100_000));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("soon", None);
        check("-1", None);
        check("1.5", None);
        check("", None);
        check("Sun, 06 Nov 1994 08:49:37 GMT", None);
        check("Sun, 99 Nov 2994 08:49:37 GMT", None);
    }

    #[test]
    fn patience_may_be_a_date() {
        let until = Timestamp::now() + Duration::from_secs(100);
        let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&until).unwrap();
        let wait = patience(&date).unwrap();
        // The date has whole seconds.
        assert!(wait > Duration::from_secs(90) && wait <= Duration::from_secs(100), "{date} {wait:?}");
        assert!(patience("Tue, 31 Dec 2999 23:59:59 GMT").unwrap() > Duration::from_secs(1_000_000));
    }
}
