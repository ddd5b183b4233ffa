//! Answers that are scripted, also in time, and what is read of them.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use llmproxy_core::{Backend, BoxError, RequestBody, Target, body::Shaped};
use llmproxy_sse::{SseConfig, SseLayer, Stream};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

pub(crate) const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream; charset=utf-8")];
pub(crate) const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
pub(crate) const DIED: &str = "data: {\"error\":{\"message\":\"the backend failed in the middle of its answer\",\"type\":\"api_error\",\
    \"param\":null,\"code\":\"backend_error\"}}\n\n";

pub(crate) fn response<B>(headers: &[(&str, &str)], body: B) -> Response<B> {
    headers.iter().fold(Response::builder(), |head, (name, value)| head.header(*name, *value)).body(body).unwrap()
}

pub(crate) fn request(timeout: Duration) -> Request<RequestBody> {
    let mut request = Request::post("/v1/chat/completions").body(RequestBody::whole("{}")).unwrap();
    let mut backend = Backend::new("http://user:secret@backend:8000").unwrap();
    backend.timeout = timeout;
    request.extensions_mut().insert(Target { backend: Arc::new(backend), model: None, inject_usage: false });
    request
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn config(gap: u64, heartbeat: Option<u64>) -> SseConfig {
    SseConfig { gap_timeout: seconds(gap), heartbeat: heartbeat.map(seconds) }
}

pub(crate) async fn through<B>(layer: &SseLayer, answer: Response<B>) -> Response<Shaped<B, Box<Stream>>>
where
    B: Body<Data = Bytes, Error = BoxError>,
{
    let mut answer = Some(answer);
    let service = layer.layer(service_fn(|_: Request<RequestBody>| {
        let answer = answer.take().unwrap();
        async move { Ok::<_, BoxError>(answer) }
    }));
    service.oneshot(request(seconds(300))).await.unwrap()
}

/// A body that gives each piece so long after the one before; then it fails, or ends.
pub(crate) fn timed(pieces: &[(u64, &'static str)], fails: bool) -> impl Body<Data = Bytes, Error = BoxError> + use<> {
    let pieces: Vec<(u64, Result<&str, &str>)> =
        pieces.iter().map(|&(wait, piece)| (wait, Ok(piece))).chain(fails.then_some((0, Err("reset")))).collect();
    StreamBody::new(stream::iter(pieces).then(|(wait, piece)| async move {
        if wait > 0 {
            sleep(seconds(wait)).await;
        }
        piece.map(|piece| Frame::data(Bytes::from(piece))).map_err(BoxError::from)
    }))
}

/// All frames as text, with the seconds at which they came, and the error.
pub(crate) async fn read(body: impl Body<Data = Bytes, Error = BoxError>) -> (Vec<(u64, String)>, Option<BoxError>) {
    let (mut body, begin, mut frames) = (pin!(body), Instant::now(), Vec::new());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.into_data().unwrap_or_else(|_| Bytes::from("trailers"));
                frames.push((begin.elapsed().as_secs(), String::from_utf8(data.to_vec()).unwrap()));
            }
            Err(error) => return (frames, Some(error)),
        }
    }
    (frames, None)
}

pub(crate) fn texts(frames: &[(u64, String)]) -> Vec<&str> {
    frames.iter().map(|(_, text)| text.as_str()).collect()
}
