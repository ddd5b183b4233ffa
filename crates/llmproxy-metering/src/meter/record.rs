//! The record of one exchange, built of its facts and of what the answer said.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use llmproxy_core::{
    End, Endpoint, Exchange, TokenUsage, UnitKind, Units, UsageRecord,
    UsageSource::{Backend, Estimated},
    UsageSources, Work,
};

use super::shape::Head;
use crate::{answer::Tally, estimate::BYTES_PER_TOKEN, tokens::Learned};

/// Everything that a record is made of.
pub(super) struct Outcome<'a> {
    pub(super) exchange: &'a Exchange,
    pub(super) method: &'a Method,
    pub(super) path: &'a Arc<str>,
    pub(super) head: Option<&'a Head>,
    pub(super) tally: &'a Tally,
    pub(super) learned: Option<&'a Learned>,
    pub(super) endpoint: Endpoint,
    pub(super) bytes: u64,
    pub(super) longest_gap: Option<Duration>,
    pub(super) end: End,
    /// Of a client that left while its answer was read on: the completion's tokens until then.
    pub(super) delivered: Option<u64>,
    pub(super) error: Option<Arc<str>>,
    /// The status of a request whose body was refused while it passed.
    pub(super) refused: Option<StatusCode>,
}

/// Pieces of a stream that are longer than that on average, in bytes, have several tokens each.
const LONG_TOKEN: u64 = 16;
/// nginx's number for a client that closed its request.
const CLIENT_CLOSED_REQUEST: u16 = 499;

// === impl Outcome ===

impl Outcome<'_> {
    pub(super) fn record(&self) -> UsageRecord {
        let exchange = self.exchange;
        let call = exchange.call();
        let (usage, usage_source) = self.usage().unzip();
        let given = || usage.filter(|_| self.end == End::ClientGone).map(|usage: TokenUsage| usage.completion);
        let delivered_tokens = self.delivered.or_else(given);
        UsageRecord {
            upstream_id: self.tally.id.clone().or_else(|| self.head?.request_id.clone()),
            endpoint: self.endpoint,
            served_model: self.tally.model.clone(),
            stream: call.map_or_else(|| self.head.is_some_and(|head| head.stream), |call| call.stream),
            status: self.status(),
            end: self.end,
            usage,
            delivered_tokens,
            usage_source,
            units: self.units(),
            longest_gap: self.longest_gap,
            error: self.error.clone(),
            ..UsageRecord::of(exchange, self.method, self.path)
        }
    }

    /// The completion's tokens; `None` where none are counted.
    pub(super) fn completion(&self) -> Option<u64> {
        self.usage().map(|(usage, _)| usage.completion)
    }

    /// The status that the client was given, or would have been.
    fn status(&self) -> u16 {
        match (self.head.map(|head| head.status).or(self.refused), self.end) {
            (Some(status), _) => status.as_u16(),
            (None, End::ClientGone) => CLIENT_CLOSED_REQUEST,
            (None, End::Timeout) => 504,
            (None, End::Shutdown) => 503,
            (None, End::ProxyFailed | End::ProxyDied) => 500,
            (None, _) => 502,
        }
    }

    /// The tokens, and who counted them.
    fn usage(&self) -> Option<(TokenUsage, UsageSources)> {
        // What is only looked up again, an answer or a batch of before, has its usage in it once more.
        if *self.method != Method::POST || !self.endpoint.is_known() {
            return None;
        }
        let prompt = self.estimated_prompt();
        if let Some((counts, deltas_since)) = self.tally.counts() {
            let mut usage = counts.or(prompt, self.estimated_completion());
            let says = |is_said| if is_said { Backend } else { Estimated };
            let mut sources = UsageSources {
                prompt: says(counts.prompt.is_some()),
                completion: says(counts.completion.is_some() || !self.generates()),
            };
            // Totals that more of the answer followed are no longer true.
            if deltas_since > 0 {
                usage.completion = counts.completion.unwrap_or(0).saturating_add(deltas_since);
                sources.completion = Estimated;
            }
            return Some((usage, sources));
        }
        if !self.worked() || self.endpoint.work() == Work::Other {
            return None;
        }
        let usage = TokenUsage { prompt, completion: self.estimated_completion(), ..TokenUsage::default() };
        Some((usage, UsageSources::both(Estimated)))
    }

    /// How much was done where it is not measured in tokens: what the answer says, else what was asked for.
    fn units(&self) -> Option<Units> {
        let seconds = self.tally.seconds.map(|count| Units { kind: UnitKind::Seconds, count });
        let units = seconds.or_else(|| self.exchange.call()?.units);
        units.filter(|_| *self.method == Method::POST && self.worked())
    }

    /// Whether the backend did what it was asked for, as far as it is known.
    fn worked(&self) -> bool {
        match self.head {
            // An error in the place of an answer is one, whatever the status.
            Some(head) if self.tally.error.is_some() && !head.counted => false,
            Some(head) => !(head.status.is_client_error() || head.status.is_server_error()),
            // Nobody waited for the answer any more; the backend was at work all the same.
            None => self.end != End::BackendFailed,
        }
    }

    /// Whether tokens come out of what was asked for.
    pub(super) fn generates(&self) -> bool {
        matches!(self.endpoint.work(), Work::Chat | Work::Completion)
    }

    fn estimated_prompt(&self) -> u64 {
        let by_size = self.exchange.call().map_or(0, |call| call.prompt_estimate);
        let learned = self.learned.and_then(|learned| learned.prompt_tokens(self.model(), by_size));
        learned.unwrap_or(by_size)
    }

    /// Under which name is learned what a token is.
    pub(super) fn model(&self) -> &str {
        self.exchange.call().and_then(|call| call.model.as_deref()).or(self.tally.model.as_deref()).unwrap_or_default()
    }

    /// By what was learned of the model's tokens; no less than the pieces, each of which has one. Where nothing is known, by
    /// the pieces, unless they are too long to be tokens, or where they are not read by the size. Of an answer that was read
    /// on, no less than was delivered.
    fn estimated_completion(&self) -> u64 {
        let bytes = self.tally.text_bytes;
        let learned = || self.learned.and_then(|learned| learned.completion_tokens(self.model(), bytes));
        let estimate = match self.head {
            _ if !self.generates() => 0,
            Some(head) if head.counted => {
                let is_many = bytes > self.tally.deltas.saturating_mul(LONG_TOKEN);
                let by_size = if is_many { bytes.div_ceil(BYTES_PER_TOKEN) } else { 0 };
                self.tally.deltas.max(learned().unwrap_or(by_size))
            }
            _ if bytes > 0 => learned().unwrap_or(bytes.div_ceil(BYTES_PER_TOKEN)),
            _ => self.bytes / BYTES_PER_TOKEN,
        };
        estimate.max(self.delivered.unwrap_or(0))
    }
}
