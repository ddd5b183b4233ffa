//! The pages on which servers tell their load: the words of each, and nothing else of what stands there.
//!
//! | server | page | names | where they come from |
//! |---|---|---|---|
//! | vLLM | `/metrics` | `vllm:num_requests_*`, `vllm:kv_cache_usage_perc`, once `vllm:gpu_cache_usage_perc` | vllm-project/vllm `vllm/v1/metrics/loggers.py`, `docs/usage/metrics.md` |
//! | SGLang | `/metrics`, with `--enable-metrics` | `sglang:num_*_reqs`, `sglang:token_usage` | sgl-project/sglang `python/sglang/srt/metrics/collector.py`, `docs/references/production_metrics.md` |
//! | TGI | `/metrics` | `tgi_batch_current_size`, `tgi_queue_size` | huggingface/text-generation-inference `docs/source/reference/metrics.md` |
//! | llama-server | `/metrics`, with `--metrics` | `llamacpp:requests_*` | ggml-org/llama.cpp `tools/server/README.md` |
//! | llama-server | `/slots` | `is_processing` of each slot | the same |
//!
//! llama-server's `kv_cache_usage_ratio` is left alone: idle slots keep their last prompt in the cache, so that a full one is
//! no load there; newer versions do not have it.

use std::collections::BTreeMap;

use serde::Deserialize;

#[cfg(test)]
mod tests;

/// So many series of one name are read; a server has one for each of its engines.
const MOST_SERIES: usize = 1024;
/// More requests than any server has: whoever says more is not believed.
const MOST_REQUESTS: f64 = 1e9;

/// What a page says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Page {
    pub(crate) running: Option<u64>,
    pub(crate) waiting: Option<u64>,
    pub(crate) kv_usage: Option<f64>,
}

/// The words of one kind of server.
struct Words {
    running: &'static str,
    waiting: &'static str,
    /// The first that is there counts.
    usage: &'static [&'static str],
}

const SERVERS: [Words; 4] = [
    Words {
        running: "vllm:num_requests_running",
        waiting: "vllm:num_requests_waiting",
        usage: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
    },
    Words { running: "sglang:num_running_reqs", waiting: "sglang:num_queue_reqs", usage: &["sglang:token_usage"] },
    Words { running: "tgi_batch_current_size", waiting: "tgi_queue_size", usage: &[] },
    Words { running: "llamacpp:requests_processing", waiting: "llamacpp:requests_deferred", usage: &[] },
];

/// The values of one name, by the engine that they are of.
type Series = BTreeMap<&'static str, BTreeMap<String, f64>>;

#[derive(Deserialize)]
struct Slot {
    is_processing: Option<bool>,
}

// === impl Page ===

impl Page {
    /// Reads a page of either kind; `None` where it says nothing of load in words that we know.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        match body.trim_ascii_start().first()? {
            b'[' => Self::slots(body),
            _ => Self::metrics(body),
        }
    }

    /// llama-server's slots. How many requests wait for one is not said there.
    fn slots(body: &[u8]) -> Option<Self> {
        let slots: Vec<Slot> = serde_json::from_slice(body).ok()?;
        let mut known = slots.iter().filter_map(|slot| slot.is_processing).peekable();
        known.peek()?;
        let running = known.filter(|is_processing| *is_processing).count();
        Some(Self { running: Some(running as u64), ..Self::default() })
    }

    /// The text format of Prometheus.
    fn metrics(body: &[u8]) -> Option<Self> {
        let mut all = Series::new();
        for line in body.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let Some((name, labels)) = named(line) else { continue };
            let Some((engine, value)) = sample(labels) else { continue };
            let series = all.entry(name).or_default();
            if series.len() < MOST_SERIES {
                // What one engine says several times, from each of its workers, is one thing.
                let known = series.entry(engine).or_insert(value);
                *known = known.max(value);
            }
        }
        SERVERS.iter().find_map(|words| {
            let page = Self {
                running: sum(&all, words.running),
                waiting: sum(&all, words.waiting),
                kv_usage: words.usage.iter().find_map(|name| mean(&all, name)),
            };
            (page != Self::default()).then_some(page)
        })
    }
}

/// The name at the start of a line, if it is one of ours, and what follows it.
fn named(line: &str) -> Option<(&'static str, &str)> {
    let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, rest) = line.split_at(end);
    let names =
        SERVERS.iter().flat_map(|words| [words.running, words.waiting].into_iter().chain(words.usage.iter().copied()));
    let name = names.into_iter().find(|known| *known == name)?;
    Some((name, rest))
}

/// The engine that a sample is of, by its labels, and its value. `None` for what is part of another sample.
fn sample(rest: &str) -> Option<(String, f64)> {
    let mut engine = String::new();
    let mut rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once('=')?;
            let after = after.trim_start().strip_prefix('"')?;
            let end = closing_quote(after)?;
            let (label, value) = (label.trim(), &after[..end]);
            rest = &after[end + 1..];
            match label {
                // SGLang: every worker of a group may say the same of the group.
                "tp_rank" | "pp_rank" | "moe_ep_rank" => {}
                // SGLang: the whole is under no priority, and beside it what of it is of each.
                "priority" if !value.is_empty() => return None,
                _ => {
                    engine.push_str(label);
                    engine.push('=');
                    engine.push_str(value);
                    engine.push('\n');
                }
            }
        }
    }
    // A time may follow.
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((engine, value))
}

/// Where a label's value ends.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

/// Of all engines together.
fn sum(all: &Series, name: &str) -> Option<u64> {
    let sum: f64 = all.get(name)?.values().sum();
    (sum <= MOST_REQUESTS).then_some(sum.round() as u64)
}

/// Of the engines that say so as a fraction.
fn mean(all: &Series, name: &str) -> Option<f64> {
    let usages: Vec<f64> = all.get(name)?.values().copied().filter(|usage| *usage <= 1.0).collect();
    (!usages.is_empty()).then(|| usages.iter().sum::<f64>() / usages.len() as f64)
}
