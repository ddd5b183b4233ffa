//! A webhook as it runs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use jiff::{Timestamp, fmt::rfc2822};
use llmproxy_core::{BoxError, HttpClient};

use crate::{
    Entry, Report, ReportBatch, Verdict, WebhookConfig,
    config::{MAX_BATCH_INTERVAL, MAX_BATCH_SIZE},
    json,
};

/// How a record is sent.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) url: Uri,
    pub(crate) timeout: Duration,
    pub(crate) retry: u32,
    pub(crate) include_request_body: bool,
    batch_size: usize,
    batch_interval: Duration,
    method: Method,
    headers: HeaderMap,
}

/// A webhook and what it is asked through.
#[derive(Debug)]
pub(crate) struct WebhookReport {
    pub(crate) name: Arc<str>,
    pub(crate) webhook: Webhook,
    pub(crate) client: HttpClient,
}

// === impl Webhook ===

impl Webhook {
    /// Takes what the operator wrote, or says what is wrong with which key.
    pub(crate) fn compile(config: &WebhookConfig) -> Result<Self, Vec<(String, String)>> {
        let mut wrong = Vec::new();
        let url = config.url.parse::<Uri>().ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
        });
        if url.is_none() {
            // Not the value itself: it may hold a token.
            wrong.push(("url".to_owned(), "must be a URL like https://host/path".to_owned()));
        }
        let method = Method::from_bytes(config.method.to_ascii_uppercase().as_bytes());
        if method.is_err() {
            wrong.push(("method".to_owned(), format!("`{}` is not a method; use POST or PUT", config.method)));
        }
        if config.timeout.is_zero() {
            wrong.push(("timeout".to_owned(), "must be longer than 0s".to_owned()));
        }
        if !(1..=MAX_BATCH_SIZE).contains(&config.batch_size) {
            wrong.push(("batch_size".to_owned(), format!("must be from 1 to {MAX_BATCH_SIZE}")));
        }
        if config.batch_interval.is_zero() || config.batch_interval > MAX_BATCH_INTERVAL {
            wrong.push(("batch_interval".to_owned(), "must be longer than 0s and at most 1h".to_owned()));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in &config.headers {
            match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(name == AUTHORIZATION);
                    headers.insert(name, value);
                }
                (Err(_), _) => wrong.push((format!("headers.{name}"), "is not a header's name".to_owned())),
                (_, Err(_)) => wrong.push((format!("headers.{name}"), "must be printable text in one line".to_owned())),
            }
        }
        match (url, method) {
            (Some(url), Ok(method)) if wrong.is_empty() => Ok(Self {
                url,
                timeout: config.timeout,
                retry: config.retry,
                include_request_body: config.include_request_body,
                batch_size: config.batch_size,
                batch_interval: config.batch_interval,
                method,
                headers,
            }),
            _ => Err(wrong),
        }
    }

    /// The request that carries `body`.
    pub(crate) fn request(&self, body: Bytes) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

// === impl WebhookReport ===

impl WebhookReport {
    async fn send(&self, body: Vec<u8>) -> Verdict {
        judge(self.client.send(self.webhook.request(body.into())).await)
    }
}

impl Report for WebhookReport {
    fn name(&self) -> &str {
        &self.name
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move { self.send(json::object(&entry)).await })
    }

    fn timeout(&self) -> Duration {
        self.webhook.timeout
    }

    fn retries(&self) -> u32 {
        self.webhook.retry
    }

    fn wants_request_body(&self) -> bool {
        self.webhook.include_request_body
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        (self.webhook.batch_size > 1).then_some(self)
    }
}

impl ReportBatch for WebhookReport {
    fn size(&self) -> usize {
        self.webhook.batch_size
    }

    fn interval(&self) -> Duration {
        self.webhook.batch_interval
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        Box::pin(async move { self.send(json::array(entries).await).await })
    }
}

fn judge(answer: Result<Response<Bytes>, BoxError>) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Verdict::again(error),
    };
    let status = answer.status();
    let why = || format!("the receiver answered {status}");
    match status {
        _ if status.is_success() => Verdict::Delivered,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Again { why: why(), after: retry_after(answer.headers()) }
        }
        _ if status.is_server_error() => Verdict::Again { why: why(), after: retry_after(answer.headers()) },
        _ => Verdict::Refused { why: why() },
    }
}

/// Seconds or a date (RFC 9110, 10.2.3).
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
        assert_eq!(judge(Err("refused".into())), Verdict::again("refused"));
    }

    #[test]
    fn a_receiver_may_ask_for_patience() {
        let check = |value: &str, expected: Option<u64>| {
            let Verdict::Again { after: wait, .. } = judge(answer(429, Some(value))) else { panic!() };
            assert_eq!(wait, expected.map(Duration::from_secs), "{value}");
        };
        check("7", Some(7));
        check("100000", Some(100_000));
        check("soon", None);
        check("-1", None);
        check("Sun, 06 Nov 1994 08:49:37 GMT", None);
    }
}
