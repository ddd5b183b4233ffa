//! Whoever wants to know what an exchange came to.

use std::sync::Arc;

use crate::UsageRecord;

/// Receives the record of an exchange in which it was left.
///
/// Called exactly once for an exchange for which a backend was asked; possibly from another task and after the answer's
/// end. A sink that was left in an exchange that ends without a record (refused before a backend was asked) is dropped.
///
/// It runs inside the end of a body, which may be a drop: it must not block, can't await, and must not panic.
///
/// A sink must not keep the exchange that it is left in: the two would keep each other alive.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
/// use llmproxy_core::{UsageRecord, UsageSink};
///
/// /// Adds up what all exchanges came to.
/// #[derive(Default)]
/// struct Total(AtomicU64);
///
/// impl UsageSink for Total {
///     fn record(&self, record: &Arc<UsageRecord>) {
///         self.0.fetch_add(record.usage.map_or(0, |usage| usage.total()), Ordering::Relaxed);
///     }
/// }
/// ```
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
