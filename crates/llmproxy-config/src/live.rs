//! The newest stack, behind a service that stays.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use tower::{Service, util::Oneshot};

/// Hands each request to the newest service, and lets those under way finish on the one that they began with.
///
/// Everything that must survive a change (limits, health, connections) lives above the services that are swapped; they
/// only hold on to it. A request that was handed over stays with its service, as does its answer's body. A service that
/// was replaced goes away with the last of them.
///
/// # Errors
///
/// The inner service's, as they are.
///
/// # Cancel safety
///
/// Dropping the future drops the inner one, or gives its place up where the inner service was not ready yet.
///
/// ```
/// use std::convert::Infallible;
///
/// use llmproxy_config::Live;
/// use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Infallible> {
/// let (live, handle) = Live::new(BoxCloneSyncService::new(service_fn(|_: ()| async { Ok::<_, Infallible>("old") })));
/// assert_eq!(live.clone().oneshot(()).await?, "old");
/// handle.swap(BoxCloneSyncService::new(service_fn(|_: ()| async { Ok("new") })));
/// assert_eq!(live.oneshot(()).await?, "new");
/// # Ok(())
/// # }
/// ```
pub struct Live<S> {
    newest: Arc<ArcSwap<S>>,
}

/// Replaces what a [`Live`] hands requests to; see there for an example. Clones are the same handle.
pub struct LiveHandle<S> {
    newest: Arc<ArcSwap<S>>,
}

// === impl Live ===

impl<S> Live<S> {
    /// Starts with `service`.
    pub fn new(service: S) -> (Self, LiveHandle<S>) {
        let newest = Arc::new(ArcSwap::from_pointee(service));
        (Self { newest: newest.clone() }, LiveHandle { newest })
    }
}

impl<S> Clone for Live<S> {
    fn clone(&self) -> Self {
        Self { newest: self.newest.clone() }
    }
}

impl<S> std::fmt::Debug for Live<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl<S, R> Service<R> for Live<S>
where
    S: Service<R> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Oneshot<S, R>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // Which service it will be is known with the request: its readiness is waited for in the call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let service = S::clone(&self.newest.load());
        Oneshot::new(service, request)
    }
}

// === impl LiveHandle ===

impl<S> LiveHandle<S> {
    /// Every request from now on goes to `service`. Returns the one before.
    pub fn swap(&self, service: S) -> Arc<S> {
        self.newest.swap(Arc::new(service))
    }
}

impl<S> Clone for LiveHandle<S> {
    fn clone(&self) -> Self {
        Self { newest: self.newest.clone() }
    }
}

impl<S> std::fmt::Debug for LiveHandle<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LiveHandle")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::future::BoxFuture;
    use tokio::sync::Semaphore;
    use tower::ServiceExt;

    use super::*;

    /// Answers with its generation once the gate opens.
    #[derive(Clone)]
    struct Generation {
        number: usize,
        gate: Arc<Semaphore>,
    }

    impl Service<http::Request<()>> for Generation {
        type Response = http::Response<usize>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            let this = self.clone();
            Box::pin(async move {
                let _permit = this.gate.acquire().await.unwrap();
                Ok(http::Response::new(this.number))
            })
        }
    }

    #[test]
    fn live_is_shared_between_threads() {
        fn check<T: Clone + Send + Sync>() {}
        check::<Live<Generation>>();
        check::<LiveHandle<Generation>>();
    }

    #[tokio::test(start_paused = true)]
    async fn requests_under_way_finish_on_the_service_they_began_with() {
        let gate = Arc::new(Semaphore::new(0));
        let (live, handle) = Live::new(Generation { number: 0, gate: gate.clone() });
        let mut running = Vec::new();
        for number in 0..10 {
            // Called, and so handed over, before the swap.
            let mut live = live.clone();
            let future = live.ready().await.unwrap().call(http::Request::new(()));
            running.push((number, tokio::spawn(future)));
            handle.swap(Generation { number: number + 1, gate: gate.clone() });
        }
        gate.add_permits(1);
        for (number, task) in running {
            assert_eq!(*task.await.unwrap().unwrap().body(), number);
        }
        assert_eq!(*live.oneshot(http::Request::new(())).await.unwrap().body(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_service_goes_away_with_its_last_request() {
        let gate = Arc::new(Semaphore::new(0));
        let marker = Arc::new(());
        let held = marker.clone();
        let service = tower::service_fn(move |_: ()| {
            let (gate, held) = (gate.clone(), held.clone());
            async move {
                let _permit = gate.acquire().await;
                drop(held);
                Ok::<_, Infallible>(())
            }
        });
        let (live, handle) = Live::new(tower::util::BoxCloneSyncService::new(service));
        let running = live.clone().call(());
        drop(handle.swap(tower::util::BoxCloneSyncService::new(tower::service_fn(|_: ()| async { Ok(()) }))));
        assert!(Arc::strong_count(&marker) > 1);
        drop(running);
        assert_eq!(Arc::strong_count(&marker), 1);
    }
}
