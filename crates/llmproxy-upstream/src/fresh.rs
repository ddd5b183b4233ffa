//! Whether a request was sent over a connection that was made for it.

use std::{
    cell::RefCell,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::Extensions;
use hyper_util::client::legacy::{
    Error,
    connect::{Connected, Connection, HttpInfo},
};
use llmproxy_core::cause_ref;
use tower::{Layer, Service};

tokio::task_local! {
    // Our ends of the connections that were made inside the future of a request. Where an idle connection turns up
    // meanwhile, the client takes that one, and whether the new one was complete by then is a matter of luck.
    static MADE: RefCell<Vec<SocketAddr>>;
}

/// Around the client's connector: notes the connections that it makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoteConnect;

/// Made by [`NoteConnect`]. The client is cloned with every request, and its connector, a tree of boxes, with it: one
/// connector for all is cheaper. It is always ready, so that no clone can take the readiness of another.
#[derive(Debug)]
pub(crate) struct Noting<S>(Arc<Mutex<S>>);

/// Runs one request. Its error comes with whether it was sent over a reused connection.
pub(crate) async fn noting_connect<F, T>(request: F) -> Result<T, (reqwest::Error, bool)>
where
    F: Future<Output = Result<T, reqwest::Error>>,
{
    let noted = async {
        request.await.map_err(|error| {
            let is_reused =
                MADE.with(|made| match cause_ref(&error).and_then(Error::connect_info).and_then(local_addr) {
                    Some(used) => !made.borrow().contains(&used),
                    None => made.borrow().is_empty(),
                });
            (error, is_reused)
        })
    };
    MADE.scope(RefCell::default(), noted).await
}

fn local_addr(connected: &Connected) -> Option<SocketAddr> {
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    extras.get::<HttpInfo>().map(HttpInfo::local_addr)
}

// === impl NoteConnect ===

impl<S> Layer<S> for NoteConnect {
    type Service = Noting<S>;

    fn layer(&self, inner: S) -> Noting<S> {
        Noting(Arc::new(Mutex::new(inner)))
    }
}

// === impl Noting ===

impl<S> Noting<S> {
    fn connector(&self) -> std::sync::MutexGuard<'_, S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Clone for Noting<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, R> Service<R> for Noting<S>
where
    S: Service<R, Response: Connection, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector().poll_ready(cx)
    }

    fn call(&mut self, destination: R) -> Self::Future {
        let connecting = self.connector().call(destination);
        Box::pin(async move {
            let connection = connecting.await?;
            // Outside of a request nobody wants to know.
            if let Some(addr) = local_addr(&connection.connected()) {
                let _ = MADE.try_with(|made| made.borrow_mut().push(addr));
            }
            Ok(connection)
        })
    }
}
