//! Where records go: a webhook, or whatever else someone writes.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use llmproxy_core::UsageRecord;

/// Delivers records to one place, one record at a time; several at a time where it has [`batches`](Self::batches).
///
/// This is all that a reporter has to know. The ledger that it is fed from, its place there, further tries and the flush at the
/// end are this crate's, the same as for a webhook: give it to [`Reporters::with_own`](crate::Reporters::with_own).
///
/// A record may come more than once: a try that ran out of time may have been delivered all the same. What tells
/// the copies is the record's `request_id`. One is on its way at a time, so that records come in order, unless
/// [`max_in_flight`](Self::max_in_flight) says otherwise.
///
/// ```
/// use futures_util::future::BoxFuture;
/// use llmproxy_usage::{Entry, Report, Verdict};
/// use tokio::sync::mpsc;
///
/// /// Hands records to another part of the program.
/// #[derive(Debug)]
/// struct Channel(mpsc::Sender<u64>);
///
/// impl Report for Channel {
///     fn name(&self) -> &str {
///         "channel"
///     }
///
///     fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
///         Box::pin(async move {
///             let tokens = entry.record.usage.unwrap_or_default().total();
///             match self.0.send(tokens).await {
///                 Ok(()) => Verdict::Delivered,
///                 Err(error) => Verdict::refused(error),
///             }
///         })
///     }
/// }
/// ```
pub trait Report: fmt::Debug + Send + Sync + 'static {
    /// What logs and metrics call it: short, always the same, and no other reporter's.
    fn name(&self) -> &str;

    /// Tries once to deliver. A panic is a failed try. It must not block: all tries share a task, so that one which blocks
    /// stops the others, and the clock of its own [`timeout`](Self::timeout). What has to block belongs on a thread.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when [`timeout`](Self::timeout) is over, which counts as [`Verdict::Again`], and when the
    /// process ends before it is ready.
    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict>;

    /// How long one try may take; 3s.
    fn timeout(&self) -> Duration {
        crate::config::DEFAULT_TIMEOUT
    }

    /// How many tries may follow the first at short distance; 3. The waits between them double, from half a second to half a
    /// minute. After those the other side counts as down: from then on it is tried about twice a minute at most, and records
    /// wait.
    fn retries(&self) -> u32 {
        crate::config::DEFAULT_RETRY
    }

    /// How old a record may become before it is given up; 7 days. [`Duration::MAX`], none ever is.
    fn max_age(&self) -> Duration {
        crate::config::DEFAULT_MAX_AGE
    }

    /// The file that keeps records which are given up; `None`, the one that all such reporters share.
    fn dead_letter(&self) -> Option<&Path> {
        None
    }

    /// How many records, or batches, may be on their way at a time; 1. More than one gives up their order. While the other
    /// side is down, one of them is tried at a time.
    fn max_in_flight(&self) -> usize {
        1
    }

    /// Whether it wants the request's body, prompts included; false. If so, the ledger keeps one for each record.
    fn wants_request_body(&self) -> bool {
        false
    }

    /// How it delivers several records at a time; `None`, it does not. Where it does, [`report`](Self::report) is not
    /// called. The other settings are about a whole batch then.
    fn batches(&self) -> Option<&dyn ReportBatch> {
        None
    }
}

/// Delivers several records at a time: the other side of a [`Report`].
///
/// A batch is delivered when it is full (with 8 MiB of requests' bodies it is, too), when its oldest record has waited for the interval, and at once when
/// [`flush`](crate::Reporters::flush) waits for it.
///
/// ```
/// use std::time::Duration;
///
/// use futures_util::future::BoxFuture;
/// use llmproxy_usage::{Entry, Report, ReportBatch, Verdict};
/// use tokio::sync::mpsc;
///
/// /// Hands records to another part of the program, a hundred at a time.
/// #[derive(Debug)]
/// struct Channel(mpsc::Sender<Vec<Entry>>);
///
/// impl Report for Channel {
///     fn name(&self) -> &str {
///         "channel"
///     }
///
///     fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
///         Box::pin(async move { self.report_batch(&[entry]).await })
///     }
///
///     fn batches(&self) -> Option<&dyn ReportBatch> {
///         Some(self)
///     }
/// }
///
/// impl ReportBatch for Channel {
///     fn size(&self) -> usize {
///         100
///     }
///
///     fn interval(&self) -> Duration {
///         Duration::from_secs(1)
///     }
///
///     fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
///         Box::pin(async move {
///             match self.0.send(entries.to_vec()).await {
///                 Ok(()) => Verdict::Delivered,
///                 Err(error) => Verdict::refused(error),
///             }
///         })
///     }
/// }
/// ```
pub trait ReportBatch: Send + Sync {
    /// How many records a batch has at most.
    fn size(&self) -> usize;

    /// How long a record waits for others at most; an hour is the most that is granted.
    fn interval(&self) -> Duration;

    /// Tries once to deliver `entries`, of which there is at least one: all of them, or the verdict is another than
    /// [`Verdict::Delivered`]. After [`Verdict::Again`] the same ones are tried again. After [`Verdict::Refused`] they are
    /// tried in halves, down to single records, of which one that is refused is given up; after
    /// [`Verdict::RefusedAll`] all of them are.
    ///
    /// # Cancel safety
    ///
    /// That of [`Report::report`].
    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict>;
}

/// What is to be delivered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The record; the same one on each try.
    pub record: Arc<UsageRecord>,
    /// The request's body as the client sent it, where the reporter wants it and the body was read.
    pub request_body: Option<Bytes>,
}

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The record is where it should be, and stays there.
    Delivered,
    /// What is wrong may pass.
    Again {
        /// What is wrong, for the log.
        why: String,
        /// The shortest wait before the next try, where the other side asks for one; an hour at most is granted.
        after: Option<Duration>,
    },
    /// It will be refused however often it is tried: it is given up at once.
    Refused {
        /// Why, for the log.
        why: String,
    },
    /// So will everything that is sent there: the address is wrong, or the sender may not. All that was tried with it is
    /// given up at once.
    RefusedAll {
        /// Why, for the log.
        why: String,
    },
}

// === impl Entry ===

impl Entry {
    /// An entry without a request's body: for tests of reporters.
    pub fn new(record: Arc<UsageRecord>) -> Self {
        Self { record, request_body: None }
    }

    /// The same with a request's body.
    pub fn with_request_body(self, body: impl Into<Bytes>) -> Self {
        Self { request_body: Some(body.into()), ..self }
    }
}

// === impl Verdict ===

impl Verdict {
    /// A failure that may pass.
    pub fn again(why: impl fmt::Display) -> Self {
        Self::Again { why: why.to_string(), after: None }
    }

    /// A failure that will not pass.
    pub fn refused(why: impl fmt::Display) -> Self {
        Self::Refused { why: why.to_string() }
    }

    /// A failure that will not pass, whatever is sent.
    pub fn refused_all(why: impl fmt::Display) -> Self {
        Self::RefusedAll { why: why.to_string() }
    }
}
