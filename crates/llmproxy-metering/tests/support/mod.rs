//! A body that does what a test says, and what collects records.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses its part of it")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use llmproxy_core::{Backend, BoxError, Call, Endpoint, Exchange, Target, UsageRecord, sink_fn};
use llmproxy_metering::{Meter, MeterLayer, MeteredBody};
use tower::{Layer, Service, ServiceExt, service_fn};

/// What a body does next.
pub enum Step {
    Data(Bytes),
    Trailers,
    Error(BoxError),
    /// Nothing comes any more.
    Hang,
    /// Nothing comes in one poll.
    Wait,
}

/// A body made of steps.
pub(crate) struct Script {
    steps: VecDeque<Step>,
    /// Whether the length is announced, and the end known with the last byte.
    exact: bool,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), exact: false }
    }

    /// The pieces, and an end of which nothing is known before.
    pub fn chunks<T: AsRef<[u8]>>(chunks: impl IntoIterator<Item = T>) -> Self {
        Self::new(chunks.into_iter().map(data))
    }

    pub fn exact(mut self) -> Self {
        self.exact = true;
        self
    }
}

pub(crate) fn data(bytes: impl AsRef<[u8]>) -> Step {
    Step::Data(Bytes::copy_from_slice(bytes.as_ref()))
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
            Some(Step::Error(error)) => Poll::Ready(Some(Err(error))),
            Some(Step::Wait) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exact && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let size = |step: &Step| if let Step::Data(data) = step { data.len() as u64 } else { 0 };
        if self.exact { SizeHint::with_exact(self.steps.iter().map(size).sum()) } else { SizeHint::default() }
    }
}

/// The records that an exchange came to.
#[derive(Clone, Default)]
pub(crate) struct Records(Arc<Mutex<Vec<Arc<UsageRecord>>>>);

impl Records {
    pub fn of(exchange: &Exchange) -> Self {
        let records = Self::default();
        let list = records.0.clone();
        exchange.add_sink(Arc::new(sink_fn(move |record| list.lock().unwrap().push(record.clone()))));
        records
    }

    pub fn all(&self) -> Vec<Arc<UsageRecord>> {
        self.0.lock().unwrap().clone()
    }

    /// The only one.
    pub fn one(&self) -> Arc<UsageRecord> {
        let all = self.all();
        assert_eq!(all.len(), 1, "exactly one record");
        all[0].clone()
    }
}

/// An exchange at `path` as inspect and the balancer would have left it.
pub(crate) fn exchange(path: &str, inject_usage: bool) -> Arc<Exchange> {
    let exchange = Exchange::new();
    let mut call = Call::new(Endpoint::of(path));
    call.prompt_estimate = 11;
    call.stream = true;
    call.model = Some("asked".into());
    exchange.set_call(call);
    exchange.expect_attempts();
    let backend = Arc::new(Backend::new("http://backend:8000").unwrap());
    let target = Target { backend, model: None, inject_usage };
    exchange.begin_attempt(&target, "least busy".into());
    exchange.set_served(Arc::new(target));
    exchange
}

pub(crate) fn request(exchange: &Arc<Exchange>, path: &str) -> Request<()> {
    let mut request = Request::post(path).body(()).unwrap();
    request.extensions_mut().insert(exchange.clone());
    request
}

/// The answer as it comes out of the meter.
pub(crate) async fn metered(
    exchange: &Arc<Exchange>,
    path: &str,
    answer: Response<Script>,
) -> Response<MeteredBody<Script>> {
    let mut answer = Some(answer);
    let inner = service_fn(move |_: Request<()>| std::future::ready(Ok::<_, Infallible>(answer.take().unwrap())));
    let service: Meter<_> = MeterLayer::new().layer(inner);
    service.oneshot(request(exchange, path)).await.unwrap()
}

pub(crate) fn typed(kind: &str, body: Script) -> Response<Script> {
    Response::builder().header("content-type", kind).body(body).unwrap()
}

pub(crate) fn events(body: Script) -> Response<Script> {
    typed("text/event-stream; charset=utf-8", body)
}

pub(crate) fn json(body: Script) -> Response<Script> {
    typed("application/json", body)
}

/// The next frame's data; `None` at the end.
pub(crate) async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Result<Bytes, B::Error>> {
    loop {
        return match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await? {
            Err(error) => Some(Err(error)),
            Ok(frame) => match frame.into_data() {
                Ok(data) => Some(Ok(data)),
                Err(_) => continue,
            },
        };
    }
}

/// All of a body, read as hyper reads it: no poll behind the end that the body knows of.
pub(crate) async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Vec<u8> {
    let mut all = Vec::new();
    while !body.is_end_stream() {
        match next(&mut body).await {
            Some(Ok(data)) => all.extend_from_slice(&data),
            Some(Err(_)) | None => break,
        }
    }
    all
}

/// Calls a service that is ready at once.
pub(crate) async fn call<S, R>(service: &mut S, request: R) -> Result<S::Response, S::Error>
where
    S: Service<R>,
{
    service.ready().await?.call(request).await
}
