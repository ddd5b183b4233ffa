//! From the figures that an exchange came to, to the record that its sinks are given.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use llmproxy_core::{Backend, End, TokenUsage, UsageRecord, UsageSink, UsageSource, UsageSources};

use super::record::Outcome;
use crate::{
    Counters, Pricing, metrics,
    tokens::{self, Learned, Question, Totals, Uncounted},
};

/// A record that has yet to be counted, or to be told.
pub(super) struct Settling {
    record: UsageRecord,
    sinks: Vec<Arc<dyn UsageSink>>,
    pricing: Option<Arc<Pricing>>,
    /// What the backend calls the model, where that is not what the client did.
    served: Option<Arc<str>>,
}

/// What was counted; each part only where it was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    prompt: Option<tokens::Counted>,
    completion: Option<tokens::Counted>,
    /// Of the completion, what the client was given that left before its end.
    delivered: Option<tokens::Counted>,
}

/// What a record says, to be compared with what is counted later.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    usage: TokenUsage,
    sources: Option<UsageSources>,
    is_whole: bool,
}

/// Learns from an answer that its backend counted what a token of the model is.
pub(super) fn learn(learned: &Learned, outcome: &Outcome<'_>, record: &UsageRecord) {
    let (Some(usage), Some(sources)) = (record.usage, record.usage_source) else { return };
    let model = outcome.model();
    if sources.prompt == UsageSource::Backend {
        let by_size = outcome.exchange.call().map_or(0, |call| call.prompt_estimate);
        learned.observe_prompt(model, by_size, usage.prompt);
    }
    // What breaks off may have been counted before its last piece, or after.
    if sources.completion == UsageSource::Backend && outcome.generates() && record.end == End::Complete {
        learned.observe_completion(model, outcome.tally.text_bytes, usage.completion);
    }
}

// === impl Settling ===

impl Settling {
    pub(super) fn new(
        record: UsageRecord,
        sinks: Vec<Arc<dyn UsageSink>>,
        pricing: Option<Arc<Pricing>>,
        served: Option<Arc<str>>,
    ) -> Self {
        Self { record, sinks, pricing, served }
    }

    /// Whether there is anything to be counted.
    pub(super) fn has_usage(&self) -> bool {
        self.record.usage.is_some()
    }

    /// Whether the backend has said all that there is to be said.
    pub(super) fn is_told(&self) -> bool {
        let all = UsageSources::both(UsageSource::Backend);
        self.record.usage_source == Some(all) && self.record.delivered_tokens.is_none()
    }

    /// What the record says.
    pub(super) fn figures(&self) -> Figures {
        let usage = self.record.usage.unwrap_or_default();
        Figures { usage, sources: self.record.usage_source, is_whole: self.record.end == End::Complete }
    }

    /// Puts in what was counted, wherever the backend did not say it, and tells the record.
    pub(super) fn count(mut self, counted: Counted) {
        let record = &mut self.record;
        if let (Some(usage), Some(sources)) = (&mut record.usage, &mut record.usage_source) {
            let was_left = record.end == End::ClientGone;
            let is_whole = record.end == End::Complete || was_left;
            put(counted.prompt, &mut usage.prompt, &mut sources.prompt, "prompt", true);
            put(counted.completion, &mut usage.completion, &mut sources.completion, "completion", is_whole);
            match counted.delivered {
                Some(delivered) => record.delivered_tokens = Some(delivered.tokens),
                // Nothing was read after the client left.
                None if was_left && counted.completion.is_some() => record.delivered_tokens = Some(usage.completion),
                None => {}
            }
        }
        self.tell();
    }

    /// Asks `backend` for what it did not say of itself, and tells the record then.
    pub(super) fn ask(
        self,
        counters: &Counters,
        backend: Option<Arc<Backend>>,
        model: Option<Arc<str>>,
        body: Option<Bytes>,
        text: Option<String>,
    ) {
        let (Some(asker), Some(backend), Some(sources)) = (counters.asker.clone(), backend, self.record.usage_source)
        else {
            return self.tell();
        };
        let is_estimate = |source| source == UsageSource::Estimated;
        let model = model.or_else(|| self.record.model.clone());
        let endpoint = self.record.endpoint;
        let prompt = body.filter(|_| is_estimate(sources.prompt)).map(|body| Question::Prompt { endpoint, body });
        let completion = text.filter(|_| is_estimate(sources.completion)).map(Question::Text);
        let mut counted = Counted::default();
        let then = {
            let (asker, backend, model) = (asker.clone(), backend.clone(), model.clone());
            move |settling: Self, mut counted: Counted| match completion {
                Some(question) => asker.submit(backend, model, question, move |answer| {
                    counted.completion = answer.ok();
                    settling.count(counted);
                }),
                None => settling.count(counted),
            }
        };
        match prompt {
            Some(question) => asker.submit(backend, model, question, move |answer| {
                counted.prompt = answer.ok();
                then(self, counted);
            }),
            None => then(self, counted),
        }
    }

    /// Gives the record to whoever wants it.
    pub(super) fn tell(mut self) {
        let names = [&self.record.model, &self.served, &self.record.served_model];
        let cost =
            |usage: TokenUsage| self.pricing.as_ref()?.cost(names.into_iter().flatten().map(|name| &**name), &usage);
        self.record.cost = self.record.usage.and_then(cost);
        let record = Arc::new(self.record);
        for sink in self.sinks {
            // Each is another's code. What one of them does wrong must not cost the others their record.
            if catch_unwind(AssertUnwindSafe(|| sink.record(&record))).is_err() {
                tracing::error!(request_id = %record.request_id, "a sink of usage records panicked");
            }
        }
    }
}

/// Puts in what was counted, unless the backend knew better; then shows how far the two are apart.
fn put(
    counted: Option<tokens::Counted>,
    tokens: &mut u64,
    source: &mut UsageSource,
    kind: &'static str,
    is_whole: bool,
) {
    let Some(counted) = counted else { return };
    if *source != UsageSource::Backend {
        *tokens = counted.tokens;
        *source = if counted.exact { UsageSource::Counted } else { UsageSource::Estimated };
    } else if counted.exact && is_whole {
        metrics::drift(kind, counted.tokens as f64 - *tokens as f64);
    }
}

// === impl Figures ===

impl Figures {
    /// Shows how far what was counted is from what the backend said.
    pub(super) fn compare(self, counted: Counted) {
        let Some(mut sources) = self.sources else { return };
        let TokenUsage { mut prompt, mut completion, .. } = self.usage;
        put(counted.prompt, &mut prompt, &mut sources.prompt, "prompt", true);
        put(counted.completion, &mut completion, &mut sources.completion, "completion", self.is_whole);
    }
}

// === impl Counted ===

impl Counted {
    /// What a tokenizer counted; calls of tools are more than their text.
    pub(super) fn of(totals: Result<Totals, Uncounted>, is_text_alone: bool) -> Self {
        let Ok(totals) = totals else { return Self::default() };
        let plain = |counted: tokens::Counted| tokens::Counted { exact: counted.exact && is_text_alone, ..counted };
        Self { prompt: totals.prompt, completion: Some(plain(totals.completion)), delivered: totals.marked.map(plain) }
    }
}
