//! The layer.

use tower::Layer;

use crate::{Sse, SseConfig, service::Settings};

/// Puts answers under limits of time and makes the failure of a stream visible.
///
/// Stands between the balancer and the upstream, so that each attempt has its own limits. It reads the request's
/// [`Target`](llmproxy_core::Target) for the backend's timeout (without one the wait for the first byte has no limit) and
/// the [`Call`](llmproxy_core::Call) for the API in whose shape errors are (without one it is OpenAI's).
///
/// ```
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::BodyExt;
/// use llmproxy_core::{BoxError, RequestBody};
/// use llmproxy_sse::{SseConfig, SseLayer};
/// use llmproxy_testkit::ScriptedBody;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let config = SseConfig { gap_timeout: Duration::from_secs(30), ..SseConfig::default() };
/// let service = SseLayer::new(&config).layer(service_fn(async |_: Request<RequestBody>| {
///     let body = ScriptedBody::new().data("data: {}\n\n").stall();
///     Ok::<_, BoxError>(Response::builder().header("content-type", "text/event-stream").body(body)?)
/// }));
/// let mut body = service.oneshot(Request::new(RequestBody::whole(""))).await?.into_body();
/// let mut next = async || body.frame().await.unwrap().map(|frame| frame.into_data().unwrap());
///
/// assert_eq!(next().await?, "data: {}\n\n");
/// let event = next().await?;
/// assert!(event.starts_with(b"data: {\"error\":{\"message\":\"the backend sent nothing more for 30s\""));
/// assert!(next().await.is_err(), "the end is broken, as the stream is");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SseLayer {
    settings: Settings,
}

// === impl SseLayer ===

impl SseLayer {
    /// A layer that does what `config` says.
    pub fn new(config: &SseConfig) -> Self {
        Self {
            settings: Settings {
                gap: Some(config.gap_timeout).filter(|gap| !gap.is_zero()),
                heartbeat: config.heartbeat.filter(|heartbeat| !heartbeat.is_zero()),
                quiet_start: false,
            },
        }
    }

    /// Whether nothing is put into a stream before its first byte, no heartbeat and no error event.
    ///
    /// Needed where someone further out holds an answer back until its first byte in order to try another backend
    /// (`routing.commit: first_byte`): what we put in must not look like an answer to it. Default: false.
    pub fn with_quiet_start(mut self, quiet_start: bool) -> Self {
        self.settings.quiet_start = quiet_start;
        self
    }
}

impl<S> Layer<S> for SseLayer {
    type Service = Sse<S>;

    fn layer(&self, inner: S) -> Sse<S> {
        Sse::new(inner, self.settings)
    }
}
