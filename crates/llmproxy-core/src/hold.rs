//! What the end of an answer waits for.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use crate::BoxError;

/// What must have happened before a client may see that its answer has ended: that the record is on disk.
///
/// Left in the exchange by [`Exchange::hold_end`](crate::Exchange::hold_end). The meter polls it only when it has told the
/// record to every sink, or handed it to those who count, so one and the same part may be the sink and the hold. What comes
/// before the end of the answer passes without it. `Ok` lets the end pass. An error is the end: the answer is broken off with
/// it, so that the client can see that it is not whole.
///
/// It must bound its own wait; nobody else does. Like a sink, it must not keep the exchange that it is left in. It is polled no more once it was ready. An exchange that ends without a
/// record, or whose client has left, drops it.
///
/// ```
/// use llmproxy_core::{EndHold, Exchange};
/// use tokio::sync::oneshot;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let exchange = Exchange::new();
/// let (committed, is_committed) = oneshot::channel::<()>();
/// exchange.hold_end(EndHold::new(async move { Ok(is_committed.await?) }));
///
/// // The meter, at the end:
/// let hold = exchange.take_end_hold().expect("it is held");
/// committed.send(()).expect("there is a hold");
/// hold.await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "what nobody waits for holds nothing"]
pub struct EndHold(Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>);

// === impl EndHold ===

impl EndHold {
    /// Holds the end until `future` is ready.
    pub fn new(future: impl Future<Output = Result<(), BoxError>> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for EndHold {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for EndHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndHold")
    }
}
