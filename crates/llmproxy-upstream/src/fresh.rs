//! Whether a request was sent over a connection that was made for it.

use std::{
    cell::Cell,
    future::Future,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

tokio::task_local! {
    // The client connects inside the future of the request that needs the connection. Where an idle connection turns up
    // meanwhile, it takes that and finishes the other one in a task of its own, where this is not set.
    static CONNECTED: Cell<bool>;
}

/// Around the client's connector: notes when a connection was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoteConnect;

/// Made by [`NoteConnect`].
#[derive(Clone, Debug)]
pub(crate) struct Noting<S>(S);

/// Runs one request; says whether a connection was made for it. `false`: it was sent over a reused one, if at all.
pub(crate) async fn noting_connect<F: Future>(request: F) -> (F::Output, bool) {
    let noted = async {
        let output = request.await;
        (output, CONNECTED.with(Cell::get))
    };
    CONNECTED.scope(Cell::new(false), noted).await
}

// === impl NoteConnect ===

impl<S> Layer<S> for NoteConnect {
    type Service = Noting<S>;

    fn layer(&self, inner: S) -> Noting<S> {
        Noting(inner)
    }
}

// === impl Noting ===

impl<S, R> Service<R> for Noting<S>
where
    S: Service<R, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, destination: R) -> Self::Future {
        let connecting = self.0.call(destination);
        Box::pin(async move {
            let connection = connecting.await?;
            // Outside of a request nobody wants to know.
            let _ = CONNECTED.try_with(|connected| connected.set(true));
            Ok(connection)
        })
    }
}
