//! Records as lines of JSON, given to something that may block.

use std::{fmt, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use crate::{Entry, Report, ReportBatch, Verdict, fields::Fields, json};

/// How long what is written at a time is waited for: somebody may be reading along.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Longer than a webhook's: a disk or a reader that is busy is no other one when it is asked again.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Takes whole lines.
pub(crate) trait WriteLines: fmt::Debug + Send + 'static {
    /// Writes them in one piece, on a thread that may be kept waiting.
    fn write(&mut self, lines: Vec<u8>) -> io::Result<()>;
}

/// What takes lines as a reporter: one JSON object in a line for each record.
#[derive(Debug)]
pub(crate) struct LineReport<W> {
    pub(crate) name: Arc<str>,
    pub(crate) fields: Fields,
    /// What it is, for people.
    pub(crate) to: String,
    /// How many are written at a time.
    pub(crate) batch_size: usize,
    /// Whoever writes has it, to the end of the write, also when nobody waits for that any more.
    pub(crate) writer: Arc<Mutex<W>>,
}

// === impl LineReport ===

impl<W: WriteLines> LineReport<W> {
    async fn write(&self, entries: &[Entry]) -> Verdict {
        let lines = json::lines(entries, &self.fields).await;
        let mut writer = self.writer.clone().lock_owned().await;
        match tokio::task::spawn_blocking(move || writer.write(lines)).await {
            Ok(Ok(())) => Verdict::Delivered,
            Ok(Err(error)) => Verdict::again(format!("{} can't be written: {error}", self.to)),
            Err(ended) => Verdict::again(ended),
        }
    }
}

impl<W: WriteLines> Report for LineReport<W> {
    fn name(&self) -> &str {
        &self.name
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move { self.write(&[entry]).await })
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    /// Without end: records wait in the ledger until somebody has put right what is wrong.
    fn max_age(&self) -> Duration {
        Duration::MAX
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        Some(self)
    }
}

impl<W: WriteLines> ReportBatch for LineReport<W> {
    fn size(&self) -> usize {
        self.batch_size
    }

    fn interval(&self) -> Duration {
        BATCH_INTERVAL
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        Box::pin(self.write(entries))
    }
}
