//! Kept connections that break with the next request: which requests are sent again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod raw;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use llmproxy_core::{BoxError, End, Ended, cause_ref};
use llmproxy_upstream::{ConnectFailure, UpstreamError};
use raw::{Conn, Raw, Sender, answer};
use tokio::time::timeout;

/// How a backend gets rid of a connection that it has answered once on.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    AfterTheAnswer,
    OnTheNextRequest,
}

async fn serve_once(mut conn: Conn, leaves: Leaves, by_reset: bool, served: Arc<AtomicUsize>) {
    if conn.request().await.is_none() {
        return;
    }
    served.fetch_add(1, Ordering::Relaxed);
    conn.write(answer("ok")).await;
    if matches!(leaves, Leaves::OnTheNextRequest) {
        conn.head().await;
    }
    if by_reset {
        conn.reset();
    }
}

async fn check_stale(leaves: Leaves, by_reset: bool) {
    const ROUNDS: usize = 60;
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let backend = tokio::spawn(async move {
        loop {
            tokio::spawn(serve_once(raw.accept().await, leaves, by_reset, count.clone()));
        }
    });
    for round in 0..ROUNDS {
        let response = sender.post(format!("request {round}")).await;
        let response = response.unwrap_or_else(|error| panic!("{leaves:?}, reset {by_reset}, {round}: {error}"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
    assert_eq!(served.load(Ordering::Relaxed), ROUNDS);
    backend.abort();
}

#[tokio::test]
async fn a_connection_closed_after_the_answer_costs_no_error() {
    check_stale(Leaves::AfterTheAnswer, false).await;
    check_stale(Leaves::AfterTheAnswer, true).await;
}

#[tokio::test]
async fn a_connection_closed_as_the_next_request_comes_costs_no_error() {
    check_stale(Leaves::OnTheNextRequest, false).await;
    check_stale(Leaves::OnTheNextRequest, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_connections_cost_no_error_among_threads_either() {
    check_stale(Leaves::AfterTheAnswer, true).await;
    check_stale(Leaves::OnTheNextRequest, true).await;
}

/// The backend's side of a connection that has served its first request, and is kept.
async fn used(raw: &Raw) -> Conn {
    let mut conn = raw.accept().await;
    conn.request().await;
    conn.write(answer("ok")).await;
    conn
}

/// The client's side of it.
async fn use_once(sender: &Sender) {
    sender.post("a").await.unwrap().into_body().collect().await.unwrap();
}

#[tokio::test]
async fn a_reused_connection_that_keeps_dying_is_an_error_after_the_second_time() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let backend = async {
        let mut conn = used(&raw).await;
        conn.request().await;
        drop(conn);
        raw.accept().await.request().await;
    };
    let client = async {
        use_once(&sender).await;
        sender.post("b").await
    };
    let (result, ()) = tokio::join!(client, backend);
    assert!(matches!(cause_ref(&*result.unwrap_err()), Some(UpstreamError::Closed { .. })));
}

/// The error of a request over a kept connection that breaks after so long, with a backend that listens no more then. The
/// clock stands still but for that.
async fn check_dies(after: Duration) -> BoxError {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let (done, is_done) = std::sync::mpsc::sync_channel::<()>(0);
    let backend = async {
        let mut conn = used(&raw).await;
        conn.request().await;
        tokio::time::advance(after).await;
        drop(raw);
        drop(conn);
    };
    let client = async {
        use_once(&sender).await;
        tokio::time::pause();
        // While a thread is waited for, a clock that stands does not go on by itself when there is nothing to do.
        let held = tokio::task::spawn_blocking(move || is_done.recv());
        let error = sender.post("b").await.unwrap_err();
        drop(done);
        let _ = held.await;
        error
    };
    tokio::join!(client, backend).0
}

#[tokio::test]
async fn a_backend_that_dies_with_a_request_on_a_reused_connection_has_broken_it_off() {
    let error = check_dies(Duration::from_millis(10)).await;
    assert_eq!(Ended::of(&*error), End::BackendFailed);
    let Some(UpstreamError::Died { source, .. }) = cause_ref(&*error) else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(cause_ref::<io::Error>(&*error).unwrap().kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("closed the connection before it answered, and takes no other one"), "{error}");
}

#[tokio::test]
async fn a_backend_that_was_gone_before_a_request_on_a_reused_connection_can_t_be_connected_to() {
    let error = check_dies(Duration::from_millis(9)).await;
    let Some(UpstreamError::Connect { failure, .. }) = cause_ref(&*error) else { panic!("{error:?}") };
    assert_eq!(*failure, ConnectFailure::Refused);
    assert!(cause_ref::<Ended>(&*error).is_none());
}

#[tokio::test]
async fn a_request_that_was_worked_on_is_not_sent_again() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let backend = async {
        let mut conn = used(&raw).await;
        conn.request().await;
        // Only this time passes: sockets keep the clock's.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        drop(conn);
        assert!(timeout(Duration::from_millis(20), raw.accept()).await.is_err());
    };
    let client = async {
        use_once(&sender).await;
        sender.post("b").await
    };
    let (result, ()) = tokio::join!(client, backend);
    let error = result.unwrap_err();
    assert!(matches!(cause_ref(&*error), Some(UpstreamError::Closed { .. })), "{error}");
}
