//! The one that has the least to compute before the answer begins: what it has cached of the prompt need not be.

mod blocks;
mod index;

use std::sync::{Mutex, MutexGuard, PoisonError};

use self::{blocks::Seed, index::Index};
use super::{Affinity, Candidate, Choice, Incoming, Policy, RoundRobin, Work};
use crate::config::PrefixAwareConfig;

/// What a request that is in flight counts as, in tokens to compute: each step makes one for it.
const IN_FLIGHT: f64 = 16.0;
/// What a token of its prompt and answer counts as: it is read in each step, and takes room in the cache.
const CONTEXT: f64 = 0.02;

/// The one that has the least to compute before the first token of an answer, over its weight: what waits there, and of this
/// prompt what it is not taken to have in its cache.
///
/// A server that has answered a prompt keeps what it has computed for it as long as it has room, and does not compute it
/// again for a prompt that begins with the same. Which has seen what is remembered here, approximately and within bounds:
/// docs/balancing.md tells how.
#[derive(Debug)]
pub struct PrefixAware {
    seed: Seed,
    index: Mutex<Index>,
    ties: RoundRobin,
}

// === impl PrefixAware ===

impl PrefixAware {
    /// Has seen nothing. Its table never grows; the system gives the memory as it is used.
    pub fn new(config: &PrefixAwareConfig) -> Self {
        let bytes = usize::try_from(config.memory).unwrap_or(usize::MAX);
        Self { seed: Seed::new(), index: Mutex::new(Index::new(bytes, config.cache_tokens)), ties: RoundRobin::new() }
    }

    /// How many tokens of the prompt each of `candidates` is taken to have in its cache.
    pub fn cached(&self, work: &Work, candidates: &[Candidate<'_>]) -> Vec<u64> {
        Self::cached_by(&self.index(), work, candidates)
    }

    fn cached_by(index: &Index, work: &Work, candidates: &[Candidate<'_>]) -> Vec<u64> {
        let blocks = &work.affinity.blocks;
        let found = index.find(blocks, candidates.iter().map(|candidate| candidate.index));
        let tokens = |found: usize| found.checked_sub(1).map_or(0, |last| blocks[last].tokens);
        found.into_iter().map(tokens).collect()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens to compute until the answer's first, in units of weight.
    fn cost(candidate: &Candidate<'_>, new: u64) -> f64 {
        let requests = IN_FLIGHT * candidate.requests() + CONTEXT * candidate.tokens_in_flight as f64;
        (new as f64 + candidate.tokens_waiting as f64 + requests) / candidate.weight
    }

    /// The cheapest, with what it has cached of the prompt; in turn among equals, and where nobody is busy.
    fn cheapest(&self, prompt: u64, cached: &[u64], candidates: &[Candidate<'_>]) -> usize {
        // Where nobody has anything to do, and none has more of it than another, this prompt is no reason to ask whoever has
        // the greatest weight each time.
        let is_idle = |candidate: &Candidate<'_>| candidate.requests() == 0.0 && candidate.tokens_waiting == 0;
        if candidates.iter().all(is_idle) && cached.iter().all(|tokens| *tokens == cached[0]) {
            return self.ties.next(candidates);
        }
        let cost = |at: usize| Self::cost(&candidates[at], prompt.saturating_sub(cached[at]));
        let least = (0..candidates.len()).map(cost).fold(f64::INFINITY, f64::min);
        let equals: Vec<usize> = (0..candidates.len()).filter(|at| cost(*at) <= least).collect();
        match equals[..] {
            [] => 0,
            [only] => only,
            _ => {
                let turn: Vec<Candidate<'_>> = equals.iter().map(|at| candidates[*at]).collect();
                equals[self.ties.next(&turn)]
            }
        }
    }
}

impl Policy for PrefixAware {
    fn affinity(&self, request: &Incoming<'_>) -> Affinity {
        Affinity { blocks: self.seed.blocks(request), ..Affinity::default() }
    }

    fn pick(&self, work: &Work, candidates: &[Candidate<'_>]) -> Choice {
        let mut index = self.index();
        let cached = Self::cached_by(&index, work, candidates);
        let prompt = work.prompt_tokens;
        let at = self.cheapest(prompt, &cached, candidates);
        let new = prompt.saturating_sub(cached[at]);
        index.insert(&work.affinity.blocks, candidates[at].index, new.saturating_add(work.output_tokens));
        let most = cached.iter().copied().max().unwrap_or_default();
        let reason = match cached[at] {
            0 if most == 0 => "least to compute",
            some if some < most => "least to compute: where more is cached, more waits",
            some if some >= prompt / 2 => "most of the prompt cached",
            _ => "some of the prompt cached",
        };
        Choice { cached: cached[at], ..Choice::new(at, reason) }
    }

    fn began(&self, work: &Work, index: usize) {
        if !work.affinity.blocks.is_empty() {
            self.index().confirm(&work.affinity.blocks, index);
        }
    }

    fn failed(&self, work: &Work, index: usize) {
        // Also for a prompt without a whole block: its answer would have taken room from others.
        self.index().take_back(&work.affinity.blocks, index, work.output_tokens);
    }

    fn forget(&self, index: usize) {
        self.index().forget(index);
        self.ties.forget(index);
    }
}

#[cfg(test)]
mod tests;
