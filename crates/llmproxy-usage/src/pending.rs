//! Counting what is not delivered yet.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, watch};

use crate::metrics::PENDING;

/// Records that wait or are being sent, over all reporters, those of old configurations included.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    records: AtomicUsize,
    /// Told when there are none.
    none: Notify,
    /// How many wait for that. As long as someone does, no batch waits to be full.
    hurry: watch::Sender<usize>,
}

/// Those of one reporter.
#[derive(Debug)]
pub(crate) struct Counts {
    outstanding: Arc<Outstanding>,
    reporter: Arc<str>,
    /// Looked up once; a recorder may be installed after the reporter was made, hence not there.
    gauge: OnceLock<metrics::Gauge>,
}

/// Counts as long as it is there: whatever becomes of its records, they are pending no longer.
#[derive(Debug)]
pub(crate) struct Pending {
    counts: Arc<Counts>,
    records: usize,
}

/// As long as it is there, there is a hurry.
#[derive(Debug)]
struct Hurry<'a>(&'a watch::Sender<usize>);

// === impl Outstanding ===

impl Outstanding {
    pub(crate) fn records(&self) -> usize {
        self.records.load(Ordering::Acquire)
    }

    /// Whether there is a hurry, and a change of that.
    pub(crate) fn hurry(&self) -> watch::Receiver<usize> {
        self.hurry.subscribe()
    }

    /// Waits, in a hurry, until there are none.
    pub(crate) async fn none(&self) {
        self.hurry.send_modify(|count| *count += 1);
        let _hurry = Hurry(&self.hurry);
        loop {
            // Before the look, so that none is missed after it.
            let none = self.none.notified();
            if self.records() == 0 {
                return;
            }
            none.await;
        }
    }
}

// === impl Counts ===

impl Counts {
    pub(crate) fn new(outstanding: Arc<Outstanding>, reporter: Arc<str>) -> Arc<Self> {
        Arc::new(Self { outstanding, reporter, gauge: OnceLock::new() })
    }

    pub(crate) fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    /// None yet.
    pub(crate) fn none(self: &Arc<Self>) -> Pending {
        Pending { counts: self.clone(), records: 0 }
    }

    fn gauge(&self) -> &metrics::Gauge {
        self.gauge.get_or_init(|| metrics::gauge!(PENDING, "reporter" => self.reporter.to_string()))
    }
}

// === impl Pending ===

impl Pending {
    /// One more.
    pub(crate) fn count(&mut self) {
        self.counts.outstanding.records.fetch_add(1, Ordering::AcqRel);
        self.counts.gauge().increment(1.0);
        self.records += 1;
    }

    /// So many of them, to be counted apart.
    pub(crate) fn split(&mut self, records: usize) -> Self {
        self.records -= records;
        Self { counts: self.counts.clone(), records }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.records == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a queue has far fewer")]
        self.counts.gauge().decrement(self.records as f64);
        let outstanding = &self.counts.outstanding;
        if outstanding.records.fetch_sub(self.records, Ordering::AcqRel) == self.records {
            outstanding.none.notify_waiters();
        }
    }
}

// === impl Hurry ===

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
