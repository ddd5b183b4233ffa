//! A webhook as it runs.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
};

use crate::WebhookConfig;

/// How a record is sent.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) url: Uri,
    pub(crate) timeout: Duration,
    pub(crate) retry: u32,
    pub(crate) include_request_body: bool,
    method: Method,
    headers: HeaderMap,
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
