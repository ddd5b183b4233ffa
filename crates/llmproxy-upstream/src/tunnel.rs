//! A connection that a backend turns into a WebSocket (RFC 6455, section 4; RFC 9110, section 7.8).

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use form_urlencoded::{byte_serialize, parse};
use http::{
    HeaderMap, HeaderValue, Response, Uri,
    header::{CONNECTION, TE, UPGRADE},
};
use llmproxy_core::{BoxError, Upgrade};
use tokio::io::{AsyncReadExt, ReadHalf, split};

use crate::{UpstreamBody, UpstreamError, head};

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// What is read of a backend at a time, in bytes.
const PIECE: usize = 8 * 1024;

/// What a backend sends through a tunnel, in pieces as they come.
#[derive(Debug)]
pub(crate) struct FromBackend {
    read: ReadHalf<reqwest::Upgraded>,
    buffer: BytesMut,
    ended: bool,
}

/// Asks for it. What a gateway takes off heads was for the connection with the client.
pub(crate) fn ask(headers: &mut HeaderMap) {
    headers.remove(TE);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// The backend has switched: its 101, with the way to it in `upgrade` and what it sends as the body.
pub(crate) async fn agreed(
    response: Response<reqwest::Body>,
    upgrade: Upgrade,
    backend: Arc<str>,
) -> Result<Response<UpstreamBody>, BoxError> {
    let to = response.headers().get(UPGRADE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !to.eq_ignore_ascii_case(WEBSOCKET.as_bytes()) {
        let source = format!("it switched to `{}`, which nobody asked for", String::from_utf8_lossy(to));
        return Err(UpstreamError::protocol(backend, source).boxed());
    }
    let mut answer = Response::new(());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    head::for_client(answer.headers_mut());
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, WEBSOCKET);
    let connection = reqwest::Response::from(response)
        .upgrade()
        .await
        .map_err(|error| UpstreamError::in_body(&backend, error).boxed())?;
    let (read, write) = split(connection);
    upgrade.agree(Box::pin(write));
    answer.extensions_mut().insert(upgrade);
    let from = FromBackend { read, buffer: BytesMut::new(), ended: false };
    Ok(answer.map(|()| UpstreamBody::tunnel(from, backend)))
}

/// `uri` with another model's name in its query. Everything else stays as it was sent.
pub(crate) fn with_model(uri: &Uri, model: &str) -> Option<Uri> {
    let is_model = |part: &&str| parse(part.as_bytes()).next().is_some_and(|(key, _)| key == "model");
    let query = uri.query()?;
    query.split('&').find(is_model)?;
    let name: String = byte_serialize(model.as_bytes()).collect();
    let parts = query.split('&').map(|part| match is_model(&part) {
        true => format!("model={name}"),
        false => part.to_owned(),
    });
    let query = parts.collect::<Vec<_>>().join("&");
    format!("{}?{query}", uri.path()).parse().ok()
}

// === impl FromBackend ===

impl FromBackend {
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.buffer.reserve(PIECE);
        let read = ready!(pin!(self.read.read_buf(&mut self.buffer)).poll(cx));
        self.ended = !matches!(read, Ok(1..));
        Poll::Ready(match read {
            Ok(0) => None,
            Ok(_) => Some(Ok(self.buffer.split().freeze())),
            Err(error) => Some(Err(error)),
        })
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_model_s_name_changes_in_a_query() {
        let check = |uri: &str, expected: Option<&str>| {
            let changed = with_model(&uri.parse().expect("a URI"), "qwen/omni 7b").map(|uri| uri.to_string());
            assert_eq!(changed.as_deref(), expected, "{uri}");
        };
        check("/v1/realtime?model=a", Some("/v1/realtime?model=qwen%2Fomni+7b"));
        check("/v1/realtime?x=%41&mod%65l=a&y", Some("/v1/realtime?x=%41&model=qwen%2Fomni+7b&y"));
        check("/v1/realtime?x=model", None);
        check("/v1/realtime", None);
    }
}
