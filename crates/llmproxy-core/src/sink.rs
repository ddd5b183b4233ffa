//! Whoever wants to know what an exchange came to.

use std::sync::Arc;

use crate::UsageRecord;

/// Receives the record of an exchange in which it was left.
///
/// Called exactly once for an exchange for which a backend was asked; possibly from another task and after the answer's
/// end. A sink that was left in an exchange that ends without a record (refused before a backend was asked) is dropped.
///
/// It runs inside the end of a body, which may be a drop: it must not block, can't await, and must not panic.
pub trait UsageSink: Send + Sync {
    /// Takes the record.
    fn record(&self, record: &Arc<UsageRecord>);
}

/// A sink made of a closure.
///
/// ```
/// use std::sync::Arc;
/// use llmproxy_core::{Exchange, sink_fn};
///
/// let exchange = Exchange::new();
/// exchange.add_sink(Arc::new(sink_fn(|record| println!("{:?}", record.usage))));
/// ```
pub fn sink_fn<F: Fn(&Arc<UsageRecord>) + Send + Sync>(f: F) -> impl UsageSink {
    SinkFn(f)
}

struct SinkFn<F>(F);

impl<F: Fn(&Arc<UsageRecord>) + Send + Sync> UsageSink for SinkFn<F> {
    fn record(&self, record: &Arc<UsageRecord>) {
        (self.0)(record);
    }
}
