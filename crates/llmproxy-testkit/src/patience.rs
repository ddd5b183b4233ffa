//! Waiting with an end, by the wall's clock.

use std::{future::Future, sync::OnceLock, thread, time::Duration};

use tokio::{runtime, sync::oneshot};

/// How long a test waits for something before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for `future`, at most ten seconds of the wall's clock even where tokio's is paused.
///
/// # Panics
///
/// When the time is over, with what `seen` says.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let (send, receive) = tokio::sync::oneshot::channel();
/// # send.send(7).unwrap();
/// let number = llmproxy_testkit::within(receive, || "no number was sent".into()).await;
/// assert_eq!(number, Ok(7));
/// # });
/// ```
///
/// # Cancel safety
///
/// Dropping it drops `future`.
pub async fn within<F: Future>(future: F, seen: impl FnOnce() -> String) -> F::Output {
    tokio::select! {
        biased;
        output = future => output,
        () = wall_sleep(PATIENCE) => panic!("waited {PATIENCE:?} in vain: {}", seen()),
    }
}

async fn wall_sleep(duration: Duration) {
    let (over, wait) = oneshot::channel();
    let timer = wall().spawn(async move {
        tokio::time::sleep(duration).await;
        let _ = over.send(());
    });
    let _abort = AbortOnDrop(timer);
    let _ = wait.await;
}

/// A runtime of our own, whose clock no test can pause.
fn wall() -> &'static runtime::Handle {
    static WALL: OnceLock<runtime::Handle> = OnceLock::new();
    WALL.get_or_init(|| {
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime with nothing but a clock needs nothing that could be missing");
        let handle = runtime.handle().clone();
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    })
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_does_not_shorten_the_wait() {
        let started = tokio::time::Instant::now();
        let (answer, wait) = oneshot::channel();
        thread::spawn(move || {
            thread::yield_now();
            let _ = answer.send(7);
        });
        assert_eq!(within(wait, || "nothing came".into()).await, Ok(7));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
