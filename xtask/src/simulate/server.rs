//! One inference server: continuous batching over blocks of KV cache, as a state machine without a clock.
//!
//! The work is done in steps. In each, every sequence that is being answered gets one token, and what is left of the step's
//! budget goes to prompts, in the order in which they came; a long one takes several steps. A sequence is admitted, first
//! come first served, when there is a place in the batch and room for all that it will ever need. So nothing is ever
//! preempted, which a real server does where it has admitted too much: it does not know how long an answer will be, and we
//! do. A step takes as long as the slower of two things: to read the weights once, or to compute all its tokens; and then
//! the time to read the context of those that are being answered. What attention costs over a long prompt is left out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::cache::{BLOCK, Cache};

/// How fast a server is, and how large.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spec {
    /// Tokens per second, where the arithmetic is what takes the time: that of prompts.
    pub(crate) prefill: f64,
    /// Seconds that a step takes at least: the weights are read once.
    pub(crate) weights: f64,
    /// Seconds for each token of context that is read to make one more token.
    pub(crate) context: f64,
    /// The most tokens of a step.
    pub(crate) budget: usize,
    /// The most sequences at once.
    pub(crate) batch: usize,
    /// Blocks of KV cache.
    pub(crate) blocks: usize,
}

/// A request, as a server sees it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) ticket: u64,
    /// Of every whole block of the prompt and the answer after it.
    pub(crate) hashes: Arc<[u64]>,
    /// Tokens.
    pub(crate) prompt: usize,
    /// Tokens, at least one.
    pub(crate) answer: usize,
}

/// What came of a step for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its first token; this many of its prompt were in the cache.
    First { ticket: u64, cached: usize },
    /// Its last one.
    Last { ticket: u64 },
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    spec: Spec,
    cache: Cache,
    waiting: VecDeque<Job>,
    running: Vec<Sequence>,
    worked: Duration,
}

/// A request that was admitted.
#[derive(Debug)]
struct Sequence {
    job: Job,
    blocks: Vec<usize>,
    /// Tokens of the prompt that were in the cache.
    cached: usize,
    /// Tokens that are in the cache now.
    computed: usize,
    /// Tokens that this step adds.
    planned: usize,
    /// Tokens of the answer.
    answered: usize,
}

// === impl Spec ===

impl Spec {
    /// Qwen2.5-7B in 16 bits on an NVIDIA A10 with 24 GB, as vLLM would run it.
    pub(crate) const SMALL: Self = Self {
        // 2 FLOP for each of 7.6e9 parameters (the model card) and token; 125 TFLOPS dense in 16 bits (NVIDIA's A10 data
        // sheet), of which half is reached: what serving engines report for large matrices on such cards.
        prefill: 4_100.0,
        // 15.2 GB of weights at 600 GB/s (the data sheet), of which 80 % are reached.
        weights: 0.032,
        // 28 layers, 4 KV heads of 128, keys and values in 16 bits (the model's config.json): 57,344 bytes at 480 GB/s.
        context: 1.2e-7,
        // vLLM's defaults for a card of this size (max_num_batched_tokens and max_num_seqs in its arg_utils.py).
        budget: 2048,
        batch: 256,
        // 90 % of 24 GB (vLLM's gpu_memory_utilization), less the weights and 1.5 GB for activations, is 4.9 GB: 85,000
        // tokens.
        blocks: 5_300,
    };

    /// Qwen2.5-32B in 8 bits on an NVIDIA H100 SXM with 80 GB.
    pub(crate) const LARGE: Self = Self {
        // 2 FLOP for each of 32.8e9 parameters and token; 1,979 TFLOPS dense in FP8 (NVIDIA's H100 data sheet), of which 40 %
        // are reached: the smaller the numbers, the more of the time goes to moving them.
        prefill: 12_000.0,
        // 32.8 GB of weights at 3.35 TB/s (the data sheet), of which 80 % are reached.
        weights: 0.0122,
        // 64 layers, 8 KV heads of 128, keys and values in 16 bits: 262,144 bytes at 2.7 TB/s.
        context: 9.8e-8,
        // vLLM's default for max_num_batched_tokens on such a card. That for max_num_seqs is 1,024; the cache has room for
        // far fewer, so that it makes no difference.
        budget: 8192,
        batch: 256,
        // 90 % of 80 GB, less the weights and 3 GB for activations, is 36 GB: 138,000 tokens.
        blocks: 8_640,
    };

    /// The same card, throttled, or shared with another job.
    pub(crate) const fn at_half_rate(self) -> Self {
        Self { prefill: self.prefill / 2.0, weights: self.weights * 2.0, context: self.context * 2.0, ..self }
    }
}

// === impl Job ===

impl Job {
    /// Blocks for all that it will ever have in the cache. The last token of an answer is never read again.
    fn needs(&self) -> usize {
        (self.prompt + self.answer - 1).div_ceil(BLOCK)
    }

    /// The blocks of the prompt that may be found. One token is computed in any case: the answer comes from it.
    pub(crate) fn findable(&self) -> &[u64] {
        let whole = (self.prompt - 1) / BLOCK;
        &self.hashes[..whole.min(self.hashes.len())]
    }
}

// === impl Server ===

impl Server {
    pub(crate) fn new(spec: Spec) -> Self {
        let cache = Cache::new(spec.blocks);
        Self { spec, cache, waiting: VecDeque::new(), running: Vec::new(), worked: Duration::ZERO }
    }

    /// A request has come. Whether it fits at all; one that does not would block the line for ever.
    #[must_use]
    pub(crate) fn push(&mut self, job: Job) -> bool {
        let fits = job.needs() <= self.cache.size();
        if fits {
            self.waiting.push_back(job);
        }
        fits
    }

    /// Begins a step and says how long it takes; `None` where there is nothing to do.
    pub(crate) fn begin(&mut self) -> Option<Duration> {
        let mut left = self.spec.budget;
        let mut context = 0;
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.is_reading()) {
            sequence.planned = 1.min(left);
            left -= sequence.planned;
            context += sequence.computed;
        }
        for sequence in self.running.iter_mut().filter(|sequence| sequence.is_reading()) {
            left -= sequence.plan_prompt(left);
        }
        while left > 0 && self.running.len() < self.spec.batch {
            let Some(mut sequence) = self.admit() else { break };
            left -= sequence.plan_prompt(left);
            self.running.push(sequence);
        }
        let tokens = self.spec.budget - left;
        if tokens == 0 {
            return None;
        }
        let computing = tokens as f64 / self.spec.prefill;
        let reading = context as f64 * self.spec.context;
        self.worked += Duration::from_secs_f64(computing + reading);
        Some(Duration::from_secs_f64(computing.max(self.spec.weights) + reading))
    }

    /// The step is done.
    pub(crate) fn finish(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let cache = &mut self.cache;
        self.running.retain_mut(|sequence| {
            let planned = std::mem::take(&mut sequence.planned);
            if planned == 0 {
                return true;
            }
            let Job { ticket, hashes, prompt, answer } = &sequence.job;
            let before = sequence.computed / BLOCK;
            sequence.computed += planned;
            for at in before..(sequence.computed / BLOCK).min(hashes.len()) {
                cache.filled(sequence.blocks[at], hashes[at]);
            }
            if sequence.computed < *prompt {
                return true;
            }
            sequence.answered += 1;
            if sequence.answered == 1 {
                events.push(Event::First { ticket: *ticket, cached: sequence.cached });
            }
            if sequence.answered < *answer {
                return true;
            }
            events.push(Event::Last { ticket: *ticket });
            cache.let_go(&sequence.blocks);
            false
        });
        events
    }

    /// The process died: nothing of it is left but what it has worked.
    pub(crate) fn crash(&mut self) {
        *self = Self { worked: self.worked, ..Self::new(self.spec) };
    }

    /// The time that its tokens have cost. Not the time that it was in steps: by the clock a server with one answer under
    /// way is as busy as one with fifty.
    pub(crate) fn worked(&self) -> Duration {
        self.worked
    }

    /// How many tokens of the job's prompt are in the cache.
    pub(crate) fn cached(&self, job: &Job) -> usize {
        self.cache.find(job.findable()) * BLOCK
    }

    /// Tokens of prompts that have come and are not computed.
    pub(crate) fn backlog(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|job| job.prompt - self.cached(job)).sum();
        let running = self.running.iter().map(|sequence| sequence.job.prompt.saturating_sub(sequence.computed));
        waiting + running.sum::<usize>()
    }

    /// What it tells of its load, in vLLM's words.
    pub(crate) fn metrics(&self) -> String {
        let of = |name: &str, value: f64| format!("vllm:{name}{{engine=\"0\",model_name=\"m\"}} {value}\n");
        let usage = self.cache.held() as f64 / self.cache.size() as f64;
        of("num_requests_running", self.running.len() as f64)
            + &of("num_requests_waiting", self.waiting.len() as f64)
            + &of("kv_cache_usage_perc", usage)
    }

    fn admit(&mut self) -> Option<Sequence> {
        let job = self.waiting.front()?;
        let room = self.cache.take(job.findable(), job.needs())?;
        let job = self.waiting.pop_front().expect("it was looked at");
        let cached = room.found * BLOCK;
        Some(Sequence { job, blocks: room.blocks, cached, computed: cached, planned: 0, answered: 0 })
    }
}

// === impl Sequence ===

impl Sequence {
    /// Whether a part of its prompt is still to be computed.
    fn is_reading(&self) -> bool {
        self.computed < self.job.prompt
    }

    fn plan_prompt(&mut self, left: usize) -> usize {
        self.planned = left.min(self.job.prompt - self.computed);
        self.planned
    }
}

#[cfg(test)]
mod tests;
