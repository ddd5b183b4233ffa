//! The end of something that is counted, told exactly once.

use super::Uncounted;
use crate::metrics;

type Told<T> = Box<dyn FnOnce(Result<T, Uncounted>) + Send>;

/// The closure that hears of the end. Dropped without a word it hears that the proxy stopped.
pub(super) struct Done<T>(Option<Told<T>>);

// === impl Done ===

impl<T> Done<T> {
    pub(super) fn new(done: impl FnOnce(Result<T, Uncounted>) + Send + 'static) -> Self {
        Self(Some(Box::new(done)))
    }

    pub(super) fn call(mut self, result: Result<T, Uncounted>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<T, Uncounted>) {
        if let Some(done) = self.0.take() {
            if let Err(why) = &result {
                metrics::count_refused(why.reason());
            }
            done(result);
        }
    }
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        self.tell(Err(Uncounted::Stopped));
    }
}
