//! What of an exchange is handed to those who count where its backend does not tell.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use llmproxy_core::{End, UsageRecord, UsageSink, UsageSource, Work};
use memchr::memmem;
use serde::Deserialize;

use super::{
    Metering,
    settle::{Counted, Settling},
};
use crate::{
    Counters,
    answer::{Dialect, Finished, Heard, Listener},
    tokens::{Tokenizer, Totals, Uncounted},
};

/// The largest request that is kept as long as the answer takes, in bytes, to ask the backend about its prompt if need be.
const MAX_KEPT_BODY: usize = 64 * 1024;

// === impl Metering ===

impl Metering {
    /// What was asked, in a body that was read.
    pub(super) fn prompt(&mut self, body: &Bytes) {
        // Under which names the model goes is known when a backend has been found.
        let counts = |counters: &Counters| counters.asker.is_some() || !counters.tokenizers.is_empty();
        let reads = self.method == Method::POST && self.endpoint().work() != Work::Other;
        if reads && self.rules.counters.as_ref().is_some_and(counts) {
            self.body = Some(Box::new(body.clone()));
        }
    }

    /// The tokenizer of the model that was asked for, by its name here or at the backend. What the answer calls it comes too
    /// late for the prompt; a request that names none has that of a pattern for any model, such as `*`.
    fn tokenizer(&self, counters: &Counters) -> Option<Arc<Tokenizer>> {
        let asked = self.exchange.call().and_then(|call| call.model.as_deref());
        let served = self.exchange.served().and_then(|target| target.model.as_deref());
        let nameless = asked.or(served).is_none().then_some("");
        [asked, served, nameless].into_iter().flatten().find_map(|model| counters.tokenizers.find(model))
    }

    /// Has the text of the answer heard, where that is of use. The prompt is handed over now: to keep it for as long as the
    /// answer takes would be to keep the bodies of all streams.
    pub(super) fn listen(&mut self, is_stream: bool) {
        let generates = matches!(self.endpoint().work(), Work::Chat | Work::Completion);
        let Some(counters) = self.rules.counters.clone() else { return };
        let echoes = self.body.as_ref().map_or(0, |body| echoes(self.tally.dialect, body));
        let listener = match (self.tokenizer(&counters), self.body.take()) {
            (Some(tokenizer), Some(body)) => {
                let mut counting = counters.pool.start(tokenizer);
                counting.prompt(self.endpoint(), *body);
                Listener::Counting(counting)
            }
            (None, Some(body)) if counters.asker.is_some() => {
                self.body = Some(body).filter(|body| body.len() <= MAX_KEPT_BODY);
                Listener::Kept(Some(String::new()))
            }
            _ if is_stream || !generates => return,
            _ => Listener::Nobody,
        };
        self.tally.heard = Some(Box::new(Heard::new(listener, self.tally.dialect, is_stream, echoes)));
    }

    /// Hands the record on, when what is to be counted of it is.
    pub(super) fn settle(&mut self, record: UsageRecord, sinks: Vec<Arc<dyn UsageSink>>) {
        let is_complete = record.end != End::ClientGone;
        let heard = self.tally.heard.take().map(|heard| heard.finish(is_complete));
        let served = self.exchange.served().and_then(|target| target.model.clone());
        let estimate = record.usage.map_or(0, |usage| usage.completion);
        let is_said = record.usage_source.is_some_and(|sources| sources.completion == UsageSource::Backend);
        let settling = Settling::new(record, sinks, self.rules.pricing.clone(), served.clone());
        let Some(counters) = self.rules.counters.clone().filter(|_| settling.has_usage()) else {
            return settling.tell();
        };
        let body = self.body.take();
        match heard {
            // Nobody need wait for what is only to be compared.
            Some(Finished { listener: Listener::Counting(counting), is_comparable, .. }) if settling.is_told() => {
                let figures = settling.figures();
                settling.tell();
                counting.finish(move |totals| figures.compare(Counted::of(totals, is_comparable)));
            }
            _ if settling.is_told() => settling.tell(),
            Some(Finished {
                listener: Listener::Counting(counting),
                is_text_alone,
                is_comparable,
                is_in_part,
                echoes,
            }) => {
                // What the backend has said stands, and is only compared.
                let is_exact = if is_said { is_comparable } else { is_text_alone };
                let least = if is_in_part { estimate } else { 0 };
                counting.finish(move |totals| settling.count(Counted::of(amended(totals, least, echoes), is_exact)));
            }
            Some(Finished { listener: Listener::Kept(text), is_text_alone, .. }) => {
                let text = text.filter(|_| is_text_alone);
                settling.ask(&counters, self.exchange.backend(), served, body.map(|body| *body), text);
            }
            // Whoever left before the head was worked for all the same.
            None if self.head.is_none() => match (self.tokenizer(&counters), body) {
                (Some(tokenizer), Some(body)) => {
                    let mut counting = counters.pool.start(tokenizer);
                    counting.prompt(self.endpoint(), *body);
                    counting.finish(move |totals| settling.count(Counted::of(totals, true)));
                }
                (_, body) => {
                    let body = body.map(|body| *body);
                    settling.ask(&counters, self.exchange.backend(), served, body, Some(String::new()));
                }
            },
            _ => settling.tell(),
        }
    }
}

/// How often an answer in `dialect` to `body` has the prompt in its text: in each choice, where it was asked for.
fn echoes(dialect: Dialect, body: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct Asked {
        echo: Option<bool>,
        n: Option<u64>,
    }
    if dialect != Dialect::Completions || memmem::find(body, b"\"echo\"").is_none() {
        return 0;
    }
    match serde_json::from_slice(body) {
        Ok(Asked { echo: Some(true), n }) => n.unwrap_or(1),
        _ => 0,
    }
}

/// Without the prompt, as often as it was repeated; and no less than that.
fn amended(totals: Result<Totals, Uncounted>, least: u64, echoes: u64) -> Result<Totals, Uncounted> {
    totals.map(|mut totals| {
        let echoed = totals.prompt.map_or(0, |prompt| prompt.tokens).saturating_mul(echoes);
        for counted in [Some(&mut totals.completion), totals.marked.as_mut()].into_iter().flatten() {
            counted.tokens = counted.tokens.saturating_sub(echoed);
        }
        totals.completion.tokens = totals.completion.tokens.max(least);
        totals
    })
}
