//! A webhook as it runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use jiff::Timestamp;
use llmproxy_core::HttpClient;

use crate::{
    Entry, Report, ReportBatch, Verdict, WebhookConfig,
    answer::judge,
    config::{MAX_BATCH_INTERVAL, MAX_BATCH_SIZE, MAX_IN_FLIGHT},
    fields::Fields,
    json,
    signature::{Secrets, batch_id},
    userinfo,
};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

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
    secrets: Option<Secrets>,
    max_age: Duration,
    dead_letter: Option<PathBuf>,
    max_in_flight: usize,
}

/// A webhook and what it is asked through.
#[derive(Debug)]
pub(crate) struct WebhookReport {
    pub(crate) name: Arc<str>,
    pub(crate) webhook: Webhook,
    pub(crate) fields: Fields,
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
        if config.max_age.is_zero() {
            wrong.push(("max_age".to_owned(), "must be longer than 0s; 168h is a week".to_owned()));
        }
        if !(1..=MAX_IN_FLIGHT).contains(&config.max_in_flight) {
            wrong.push(("max_in_flight".to_owned(), format!("must be from 1 to {MAX_IN_FLIGHT}")));
        }
        let secrets = config.secret.as_deref().map(Secrets::compile).transpose();
        if let Err(what) = &secrets {
            wrong.push(("secret".to_owned(), what.clone()));
        }
        let is_signed = !matches!(secrets, Ok(None));
        let (url, credentials) = url.map(userinfo::part).unzip();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Those of `headers` count more.
        headers.extend(credentials.flatten().map(|value| (AUTHORIZATION, value)));
        for (name, value) in &config.headers {
            match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                (Ok(known), _) if is_signed && [ID, TIMESTAMP, SIGNATURE].contains(&known) => {
                    wrong.push((format!("headers.{name}"), "is set by `secret`; leave one of the two out".to_owned()));
                }
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(name == AUTHORIZATION);
                    headers.insert(name, value);
                }
                (Err(_), _) => wrong.push((format!("headers.{name}"), "is not a header's name".to_owned())),
                (_, Err(_)) => wrong.push((format!("headers.{name}"), "must be printable text in one line".to_owned())),
            }
        }
        match (url, method, secrets) {
            (Some(url), Ok(method), Ok(secrets)) if wrong.is_empty() => Ok(Self {
                url,
                timeout: config.timeout,
                retry: config.retry,
                include_request_body: config.include_request_body,
                batch_size: config.batch_size,
                batch_interval: config.batch_interval,
                method,
                headers,
                secrets,
                max_age: config.max_age,
                dead_letter: Some(config.dead_letter.clone()).filter(|path| !path.as_os_str().is_empty()),
                max_in_flight: config.max_in_flight,
            }),
            _ => Err(wrong),
        }
    }

    /// The request that carries `body`, signed where there is a secret. `id` is the same on each try, the time is not: it
    /// is there so that a receiver can refuse what somebody else sends again much later.
    fn request(&self, id: impl FnOnce() -> String, body: Bytes) -> Request<Bytes> {
        let mut headers = self.headers.clone();
        if let Some(secrets) = &self.secrets {
            let (id, now) = (id(), Timestamp::now().as_second());
            let text = |value: &str| HeaderValue::try_from(value).expect("hexadecimal, base64 and digits");
            headers.insert(SIGNATURE, text(&secrets.sign(&id, now, &body)));
            headers.insert(ID, text(&id));
            headers.insert(TIMESTAMP, now.into());
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        request
    }
}

// === impl WebhookReport ===

impl WebhookReport {
    async fn send(&self, id: impl FnOnce() -> String, body: Vec<u8>) -> Verdict {
        judge(self.client.send(self.webhook.request(id, body.into())).await)
    }
}

impl Report for WebhookReport {
    fn name(&self) -> &str {
        &self.name
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            let id = || entry.record.request_id.to_string();
            self.send(id, json::object(&entry, &self.fields)).await
        })
    }

    fn timeout(&self) -> Duration {
        self.webhook.timeout
    }

    fn retries(&self) -> u32 {
        self.webhook.retry
    }

    fn max_age(&self) -> Duration {
        self.webhook.max_age
    }

    fn dead_letter(&self) -> Option<&Path> {
        self.webhook.dead_letter.as_deref()
    }

    fn max_in_flight(&self) -> usize {
        self.webhook.max_in_flight
    }

    fn wants_request_body(&self) -> bool {
        self.webhook.include_request_body && self.fields.has("request_body")
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
        Box::pin(async move {
            let id = || batch_id(entries.iter().map(|entry| entry.record.request_id));
            self.send(id, json::array(entries, &self.fields).await).await
        })
    }
}
