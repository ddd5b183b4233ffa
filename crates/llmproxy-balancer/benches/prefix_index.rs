//! What `prefix_aware` costs for a prompt of 32 KB, where its table has a million prefixes.
//!
//! ```text
//! cargo bench -p llmproxy-balancer --bench prefix_index
//! ```
//!
//! Each prompt is another one, so that its places are in no cache of the processor's.

use std::{hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use llmproxy_balancer::{Affinity, Block, Candidate, Incoming, Policy, PrefixAware, PrefixAwareConfig, Work};
use llmproxy_core::{Backend, Call, Endpoint, Prompt};
use tokio::time::Instant;

const PROMPT: usize = 32 << 10;
const PREFIXES: usize = 1_000_000;
const BACKENDS: usize = 8;
const GROUP: usize = 50;

fn main() {
    let policy = PrefixAware::new(&PrefixAwareConfig::default());
    let backend = Arc::new(Backend::new("http://a").expect("a URL"));
    let candidates: Vec<Candidate<'_>> =
        (0..BACKENDS).map(|index| Candidate { tried: true, ..Candidate::new(&backend, index) }).collect();

    let body = Bytes::from("hello world, ".repeat(PROMPT / 13 + 1)).slice(..PROMPT);
    let prompt = Prompt { text: 0..PROMPT, ..Prompt::default() };
    let tokens = PROMPT as u64 / 4;
    let call =
        Call { prompt: Some(prompt), prompt_estimate: tokens, ..Call::new(Endpoint::of("/v1/chat/completions")) };
    let (head, ()) = Request::new(()).into_parts();
    let incoming = Incoming { head: &head, call: Some(&call), model: None, body: Some(&body) };
    row("hash, outside of the lock", &[(); 20_000], |()| {
        black_box(policy.affinity(black_box(&incoming)));
    });

    let length = policy.affinity(&incoming).blocks.len();
    let count = PREFIXES / length;
    // The first half of each prompt is one of a hundred, as of a system's.
    let work: Vec<Work> = (0..count).map(|own| work(length, tokens, own as u64 % 100, own as u64)).collect();
    let pick = |work: &Work| {
        black_box(policy.pick(black_box(work), &candidates));
    };
    let look_up = |work: &Work| {
        black_box(policy.cached(black_box(work), &candidates));
    };
    row("pick and remember a new one", &work, pick);
    row("look up one that a backend has", &work, look_up);
    let turns: Vec<Work> = work.iter().enumerate().map(|(own, work)| longer(work, own as u64)).collect();
    row("look up its next turn", &turns, look_up);
    let new: Vec<Work> = (0..count as u64).map(|own| self::work(length, tokens, own % 100, own << 32)).collect();
    row("look up one that has its beginning in common", &new, look_up);
    let strange: Vec<Work> = (0..count as u64).map(|own| self::work(length, tokens, own << 32, own)).collect();
    row("look up one that nobody has", &strange, look_up);
    row("pick and remember the next turn", &turns, pick);
}

/// The median of groups of fifty: other processes that take the processor away now and then do not count.
fn row<T>(name: &str, each: &[T], mut f: impl FnMut(&T)) {
    let groups = each.chunks_exact(GROUP).map(|group| {
        let began = Instant::now();
        group.iter().for_each(&mut f);
        began.elapsed()
    });
    let mut times: Vec<Duration> = groups.collect();
    times.sort_unstable();
    println!("{name:46} {:8.0} ns", times[times.len() / 2].as_secs_f64() * 1e9 / GROUP as f64);
}

/// A prompt of so many blocks, of which the first half is its family's.
fn work(length: usize, tokens: u64, family: u64, own: u64) -> Work {
    let mut chain = mix(family);
    let blocks = (0..length).map(|at| {
        chain = mix(chain ^ if at < length / 2 { 0 } else { mix(own) });
        Block { hash: chain, tokens: tokens * (at as u64 + 1) / length as u64 }
    });
    let affinity = Affinity { blocks: blocks.collect(), ..Affinity::default() };
    Work { prompt_tokens: tokens, output_tokens: 300, affinity }
}

/// The same with another end.
fn longer(work: &Work, own: u64) -> Work {
    let mut work = work.clone();
    let length = work.affinity.blocks.len();
    for (at, block) in work.affinity.blocks[length * 9 / 10..].iter_mut().enumerate() {
        block.hash = mix(mix(own ^ u64::MAX) ^ at as u64);
    }
    work
}

/// Scatters bits, as hashes are.
fn mix(value: u64) -> u64 {
    let value = (value ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 32)
}
