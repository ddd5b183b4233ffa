//! What one exchange comes to, counted off its task.

use std::{collections::BTreeMap, mem, sync::Arc};

use bytes::Bytes;
use llmproxy_core::Endpoint;
use tokio::time::Instant;

use super::{
    Counted, Run, Tokenizer, Uncounted,
    pool::{Lane, Pool},
};
use crate::metrics;

pub use super::pool::Limits;

/// As much text is gathered before it is handed over, in bytes: a hand-over costs as much as counting some of it.
const PIECE: usize = 2048;
/// So many texts of an exchange are told apart; those beyond it are counted as one, and so not exactly.
const MAX_PARTS: u32 = 64;

/// Threads that count, and what waits for them. Clones are the same pool; it outlives reloads.
///
/// Without work it has no threads. What waits is bounded: past that an exchange ends as [`Uncounted::Full`] and the metric
/// `llmproxy_usage_count_refused_total` says so.
#[derive(Clone, Debug)]
pub struct CountPool(Pool<Sums>);

/// What is being counted of one exchange: its prompt and its texts, in pieces as they come.
///
/// Nothing of it blocks or waits, so that it may be used where a body is polled or dropped. Dropped before its
/// [`finish`](Self::finish) it is given up, and nobody hears of it.
#[derive(Debug)]
pub struct Counting {
    lane: Lane<Sums>,
    /// Text of each part that is not handed over yet.
    gathered: BTreeMap<u32, String>,
}

/// What an exchange came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The prompt; `None` where none was given to count, or none that could be.
    pub prompt: Option<Counted>,
    /// All texts together.
    pub completion: Counted,
    /// The same until [`Counting::mark`]; `None` without it.
    pub marked: Option<Counted>,
}

/// The state of a lane.
struct Sums {
    tokenizer: Arc<Tokenizer>,
    prompt: Option<Counted>,
    runs: BTreeMap<u32, Run>,
    /// Whether texts were mixed up for want of places.
    mixed: bool,
    marked: Option<Counted>,
}

// === impl CountPool ===

impl CountPool {
    /// A pool with nothing to do.
    pub fn new(limits: Limits) -> Self {
        Self(Pool::new(limits))
    }

    /// Sets other limits, as a reload does. What waits already stays.
    pub fn resize(&self, limits: Limits) {
        self.0.resize(limits);
    }

    /// Begins to count an exchange.
    pub fn start(&self, tokenizer: Arc<Tokenizer>) -> Counting {
        let sums = Sums { tokenizer, prompt: None, runs: BTreeMap::new(), mixed: false, marked: None };
        Counting { lane: self.0.lane(sums), gathered: BTreeMap::new() }
    }

    /// Steps that wait or are at work.
    pub fn pending(&self) -> usize {
        self.0.pending()
    }

    /// Waits until all is counted, but no longer than until `deadline`; for the end of the proxy, after the last exchange. Then
    /// the pool is closed: each exchange that still waits ends as [`Uncounted::Stopped`], and so does each that
    /// comes later. Gives the number of those that waited.
    ///
    /// # Cancel safety
    ///
    /// A pool whose draining is dropped goes on as before.
    pub async fn drain(&self, deadline: Instant) -> usize {
        self.0.drain(deadline).await
    }
}

// === impl Counting ===

impl Counting {
    /// Counts the prompt in `body`, a request's JSON for `endpoint`. It is held until then.
    pub fn prompt(&mut self, endpoint: Endpoint, body: Bytes) {
        self.lane.then(body.len() as u64, move |sums| {
            sums.prompt = sums.tokenizer.count_prompt(endpoint, &body);
            if sums.prompt.is_none() {
                // The text of the answer is counted all the same.
                metrics::count_refused(Uncounted::Failed.reason());
            }
        });
    }

    /// Counts `text`, which goes on where the last of the same `part` ended. What belongs to different texts has different
    /// numbers: each choice of an answer, what it thinks, the arguments of each call of a tool.
    pub fn text(&mut self, part: u32, text: &str) {
        if self.lane.is_refused() {
            self.gathered.clear();
            return;
        }
        let slot = part.min(MAX_PARTS);
        let gathered = self.gathered.entry(slot).or_default();
        gathered.push_str(text);
        if gathered.len() >= PIECE {
            let text = mem::take(gathered);
            self.hand_over(slot, text);
        }
    }

    /// Notes what the texts have come to until now, for [`Totals::marked`]; the last time counts.
    pub fn mark(&mut self) {
        self.hand_over_all();
        self.lane.then(0, |sums| sums.marked = Some(sums.completion()));
    }

    /// Has `done` called once with what it came to, when all is counted; on another thread, or on this one and at once where
    /// there is no place to wait. It must not block for long.
    pub fn finish(mut self, done: impl FnOnce(Result<Totals, Uncounted>) + Send + 'static) {
        self.hand_over_all();
        self.lane.finish(move |sums| done(sums.map(Sums::totals)));
    }

    fn hand_over_all(&mut self) {
        for (part, text) in mem::take(&mut self.gathered) {
            if !text.is_empty() {
                self.hand_over(part, text);
            }
        }
    }

    fn hand_over(&mut self, part: u32, text: String) {
        self.lane.then(text.len() as u64, move |sums| sums.push(part, &text));
    }
}

// === impl Sums ===

impl Sums {
    fn push(&mut self, part: u32, text: &str) {
        self.mixed |= part == MAX_PARTS;
        self.runs.entry(part).or_insert_with(|| Run::new(self.tokenizer.clone())).push(text);
    }

    fn totals(self) -> Totals {
        Totals { prompt: self.prompt, completion: self.completion(), marked: self.marked }
    }

    fn completion(&self) -> Counted {
        let none = Counted { tokens: 0, exact: !self.mixed };
        self.runs.values().map(Run::so_far).fold(none, Counted::and)
    }
}
