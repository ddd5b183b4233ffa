//! The service: which bodies are read, and what is left in the exchange.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, header::CONTENT_ENCODING};
use http_body::Body;
use http_body_util::BodyExt;
use llmproxy_core::{BoxBody, BoxError, Call, Endpoint, Exchange, RequestBody};
use tokio::time::Instant;
use tower::Service;

use crate::{
    BodyBudget, InspectError, facts,
    form::Scanner,
    media::{is_json, media_type},
    metrics::REFUSED,
    query,
    read::{Limits, Reader},
};

/// What is kept or handed in under these: no model works there, or the proxy can't read which. A batch's stand in its file.
const STORES: [&str; 4] = ["/v1/batches", "/v1/conversations", "/v1/files", "/v1/uploads"];

/// Reads a JSON body whole and leaves what it asks for, a [`Call`], in the exchange; the request goes on with a
/// [`RequestBody`] that can be sent again. Other bodies pass through unread, bounded in size and in their gaps.
///
/// Made by [`InspectLayer`](crate::InspectLayer), where there is an example.
///
/// # Errors
///
/// An [`InspectError`] where the body is refused or does not come; also from a body that passes through, once it is too
/// large or too slow. Else whatever the inner service says.
///
/// # Cancel safety
///
/// Dropping the future while the body is read gives back the memory that it had reserved, and leaves no fact behind.
#[derive(Clone, Debug)]
pub struct Inspect<S> {
    inner: S,
    inspector: Arc<Inspector>,
}

#[derive(Debug)]
pub(super) struct Inspector {
    pub(super) limits: Limits,
    /// In bytes, for what passes through.
    pub(super) max_upload: u64,
    pub(super) budget: BodyBudget,
}

/// Whether a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is JSON.
    Json,
    /// It is JSON if it begins like that, whatever its type says: some servers do not look at the type.
    Unsure,
    /// It passes through.
    Other,
}

// === impl Inspect ===

impl<S> Inspect<S> {
    pub(super) fn new(inner: S, inspector: Arc<Inspector>) -> Self {
        Self { inner, inspector }
    }
}

impl<S, B> Service<Request<B>> for Inspect<S>
where
    S: Service<Request<RequestBody>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let exchange = Exchange::of(request.extensions_mut());
        let inspector = self.inspector.clone();
        // The service that was found ready goes; its clone stays.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        // Taken apart here, as the future would keep room for the whole beside the parts.
        let (head, body) = request.into_parts();
        let endpoint = Endpoint::of(head.uri.path());
        let body = if body.is_end_stream() { None } else { Some(body.map_err(Into::into).boxed_unsync()) };
        let takes_model = body.is_some() && may_take_model(endpoint, head.uri.path());
        Box::pin(async move {
            let (mut call, body) = inspector
                .inspect(endpoint, &head.method, &head.headers, body)
                .await
                .and_then(|(call, body)| Ok((with_query(call, head.uri.query())?, body)))
                .inspect_err(|error| metrics::counter!(REFUSED, "reason" => error.code()).increment(1))?;
            call.takes_model |= takes_model;
            exchange.set_call(call);
            inner.call(Request::from_parts(head, body)).await.map_err(Into::into)
        })
    }
}

/// Whether a body that is sent to a path that is not known may be work for a model. Each server has paths of its own for
/// such work, and would take one that it has where none is named; nothing but its body tells it from what is looked up.
fn may_take_model(endpoint: Endpoint, path: &str) -> bool {
    let mut below = STORES.iter().filter_map(|store| path.strip_prefix(store));
    !endpoint.is_known() && !below.any(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A realtime session says in its query what others say in their body; and what comes of it is a stream.
fn with_query(mut call: Call, query: Option<&str>) -> Result<Call, InspectError> {
    if call.endpoint.template() == "/v1/realtime" {
        let model = query::model(query)?;
        if model.is_some() && call.model.is_some() {
            return Err(InspectError::Duplicate { param: "model" });
        }
        (call.model, call.stream) = (model.or(call.model), true);
    }
    Ok(call)
}

// === impl Inspector ===

impl Inspector {
    /// # Cancel safety
    ///
    /// Dropping the future gives back what it had reserved.
    async fn inspect(
        &self,
        endpoint: Endpoint,
        method: &Method,
        headers: &HeaderMap,
        body: Option<BoxBody>,
    ) -> Result<(Call, RequestBody), InspectError> {
        let kind = Kind::of(endpoint, method, headers);
        let Some(body) = body else {
            // An empty body is no JSON: the endpoint says so itself where it is one that must have it.
            if kind != Kind::Other && facts::takes_json(endpoint) {
                facts::find(endpoint, b"")?;
            }
            return Ok((Self::unread(endpoint), RequestBody::whole(Bytes::new())));
        };
        if kind == Kind::Other {
            let limits = Limits { max_size: self.max_upload, ..self.limits };
            let reader = Reader::new(body, limits, self.budget.reservation())?;
            return match Scanner::new(headers)? {
                Some(form) => Self::form(endpoint, reader, form).await,
                None => Ok((Self::unread(endpoint), reader.pass())),
            };
        }
        let mut reader = Reader::new(body, self.limits, self.budget.reservation())?;
        let began = Instant::now();
        let is_json = kind == Kind::Json
            || match reader.peek().await? {
                Some(b'{' | b'[') => true,
                // A byte order mark, or UTF-16: Python's JSON reads them, so they must not pass unseen.
                Some(0xef | 0xfe | 0xff | 0x00) => facts::takes_json(endpoint),
                _ => false,
            };
        if !is_json {
            return Ok((Self::unread(endpoint), reader.pass()));
        }
        match headers.get(CONTENT_ENCODING) {
            Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
                if facts::takes_json(endpoint) {
                    return Err(InspectError::Encoded {
                        encoding: String::from_utf8_lossy(encoding.as_bytes()).into(),
                    });
                }
                return Ok((Self::unread(endpoint), reader.pass()));
            }
            _ => {}
        }
        let bytes = reader.whole().await?;
        let read_time = began.elapsed();
        let (mut call, edits) = facts::find(endpoint, &bytes)?;
        call.read_time = read_time;
        Ok((call, RequestBody::Replay(bytes, edits)))
    }

    /// What a form says before its file.
    async fn form(
        endpoint: Endpoint,
        mut reader: Reader,
        mut form: Scanner,
    ) -> Result<(Call, RequestBody), InspectError> {
        let began = Instant::now();
        reader.form(&mut form).await?;
        let read_time = began.elapsed();
        let found = form.found();
        if found.is_duplicate {
            return Err(InspectError::Duplicate { param: "model" });
        }
        if form.is_lost() {
            return Err(InspectError::BadForm);
        }
        let mut call = Self::unread(endpoint);
        call.read_time = read_time;
        call.units = facts::units::images(endpoint, found.number);
        let Some(model) = found.model.as_deref() else { return Ok((call, reader.pass())) };
        call.model = Some(model.into());
        call.stream = found.stream.unwrap_or(call.stream);
        let at = found.model_at.clone();
        Ok((call, reader.pass_form(at, form)))
    }

    /// What the head alone says.
    fn unread(endpoint: Endpoint) -> Call {
        let mut call = Call::new(endpoint);
        call.stream = facts::streams_by_default(endpoint);
        call
    }
}

// === impl Kind ===

impl Kind {
    fn of(endpoint: Endpoint, method: &Method, headers: &HeaderMap) -> Self {
        if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
            return Self::Other;
        }
        match media_type(headers) {
            Some(kind) if is_json(kind) => Self::Json,
            None => Self::Unsure,
            // `curl -d` calls its JSON a form, and servers that do not look at the type would read past the limits.
            Some(_) if facts::takes_json(endpoint) => Self::Unsure,
            Some(_) => Self::Other,
        }
    }
}
