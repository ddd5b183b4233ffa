//! What makes a model server slow: places in its batch, prompts that are read one after the other, and a cache of what it has
//! read before.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::sleep,
};

use super::ask::Ask;

/// Words of a prompt that are cached together.
pub(super) const BLOCK: usize = 16;

/// Continuous batching, as far as others notice it.
#[derive(Debug)]
pub(super) struct Engine {
    /// Answers that may be under way at a time; whoever comes then waits, first come first served.
    places: Semaphore,
    /// One prompt is read at a time.
    reading: Semaphore,
    /// Words of a prompt that are read in a second.
    prefill_rate: f64,
    cache: Mutex<Cache>,
    running: AtomicUsize,
    waiting: AtomicUsize,
    cached: AtomicU64,
}

/// Blocks that were read, each named by all that is before it; the one that was not used for longest goes first.
#[derive(Debug)]
struct Cache {
    blocks: HashMap<u64, u64>,
    capacity: usize,
    clock: u64,
}

/// A place in the batch, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    engine: &'a Engine,
    _permit: Option<SemaphorePermit<'a>>,
}

/// Counts one that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

// === impl Engine ===

impl Engine {
    pub(super) fn new(batch: usize, prefill_rate: f64, cache: usize) -> Self {
        Self {
            places: Semaphore::new(batch.min(Semaphore::MAX_PERMITS)),
            reading: Semaphore::new(1),
            prefill_rate,
            cache: Mutex::new(Cache { blocks: HashMap::new(), capacity: cache, clock: 0 }),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            cached: AtomicU64::new(0),
        }
    }

    /// Waits for a place in the batch and reads the prompt. Dropping the future gives all up.
    pub(super) async fn admit(&self, ask: &Ask) -> Place<'_> {
        let waiting = Waiting::new(&self.waiting);
        // Nobody closes them.
        let permit = self.places.acquire().await.ok();
        drop(waiting);
        self.running.fetch_add(1, Ordering::Relaxed);
        let place = Place { engine: self, _permit: permit };
        let _reading = self.reading.acquire().await;
        let known = self.cache().read(&ask.blocks) * BLOCK as u64;
        let known = known.min(ask.prompt_tokens);
        self.cached.fetch_add(known, Ordering::Relaxed);
        let seconds = (ask.prompt_tokens - known) as f64 / self.prefill_rate;
        if let Ok(time) = Duration::try_from_secs_f64(seconds)
            && !time.is_zero()
        {
            sleep(time).await;
        }
        place
    }

    /// Words of prompts that it had read before.
    pub(super) fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// As vLLM's `/metrics` has it.
    pub(super) fn metrics(&self, model: &str) -> String {
        let (running, waiting) = (self.running.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed));
        let cache = self.cache();
        let usage = if cache.capacity == 0 { 0.0 } else { cache.blocks.len() as f64 / cache.capacity as f64 };
        let labels = format!("{{engine=\"0\",model_name=\"{model}\"}}");
        let mut text = String::new();
        for (name, value) in [
            ("num_requests_running", running as f64),
            ("num_requests_waiting", waiting as f64),
            ("kv_cache_usage_perc", usage),
        ] {
            text +=
                &format!("# HELP vllm:{name} As it says.\n# TYPE vllm:{name} gauge\nvllm:{name}{labels} {value:?}\n");
        }
        text
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Cache ===

impl Cache {
    /// How many of the leading blocks are there; from now on all of them are, as far as they fit.
    fn read(&mut self, blocks: &[u64]) -> u64 {
        let known = blocks.iter().take_while(|block| self.blocks.contains_key(block)).count();
        self.clock += 1;
        for block in blocks.iter().take(self.capacity) {
            self.blocks.insert(*block, self.clock);
        }
        while self.blocks.len() > self.capacity {
            let Some(oldest) = self.blocks.iter().min_by_key(|(_, used)| **used).map(|(block, _)| *block) else {
                break;
            };
            self.blocks.remove(&oldest);
        }
        known as u64
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.engine.running.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
