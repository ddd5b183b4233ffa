//! How one of several backends is chosen: the decision, without HTTP.

mod latency_based;
mod least_connections;
mod least_tokens;
mod prefix_aware;
mod random;
mod round_robin;
mod session;

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::request::Parts;
use llmproxy_core::{Backend, Call};

pub use latency_based::LatencyBased;
pub use least_connections::LeastConnections;
pub use least_tokens::LeastTokens;
pub use prefix_aware::PrefixAware;
pub use random::Random;
pub use round_robin::RoundRobin;
pub use session::Session;

use crate::{
    config::{LoadBalance, PrefixAwareConfig, RoutingConfig, SessionConfig},
    signals::Load,
};

/// What an answer is taken to come to, in tokens, before any is known and where nothing bounds it: as long as answers in chats commonly are.
pub(crate) const COMMON_OUTPUT: u64 = 300;

/// Chooses among backends that could all do the work.
///
/// ```
/// use llmproxy_balancer::{Candidate, Choice, Policy, Work};
///
/// /// The one with the fewest requests in flight, whatever its weight.
/// #[derive(Debug)]
/// struct Emptiest;
///
/// impl Policy for Emptiest {
///     fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
///         let at = (0..candidates.len()).min_by_key(|at| candidates[*at].in_flight).unwrap_or(0);
///         Choice::new(at, "emptiest")
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send + Sync {
    /// What of a request this policy chooses by. Read once for each request, before the first pick and outside of every
    /// lock.
    fn affinity(&self, _request: &Incoming<'_>) -> Affinity {
        Affinity::default()
    }

    /// Which of `candidates`, which is never empty, is to be asked. Called with a lock held that every other pick of the same
    /// pool waits for: it must be quick. What is chosen is asked, so a policy may remember it at once.
    fn pick(&self, work: &Work, candidates: &[Candidate<'_>]) -> Choice;

    /// The backend of this index, which was picked for `work`, has sent the first byte of an answer.
    fn began(&self, _work: &Work, _index: usize) {}

    /// It has not, and will not: it could not be reached, or refused, or broke off before. What a policy remembers of the
    /// pick is not so.
    fn failed(&self, _work: &Work, _index: usize) {}

    /// The backend of this index is gone, or has come back with nothing left of what it had: what is known of it does not
    /// count any more. Another backend may have the index next.
    fn forget(&self, _index: usize) {}
}

/// A request, as a policy may read it.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Method, URI, headers.
    pub head: &'a Parts,
    /// What it asks for, where that is known.
    pub call: Option<&'a Call>,
    /// The model by its name at the backends: not an alias of it that the client may have used.
    pub model: Option<&'a str>,
    /// Its body, where that was read whole.
    pub body: Option<&'a Bytes>,
}

/// What of a request ties it to a backend that has had others like it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// What all requests of one session have in common.
    pub session: Option<u64>,
    /// The leading blocks of its prompt.
    pub blocks: Box<[Block]>,
}

/// A part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Of it and all before it.
    pub hash: u64,
    /// How many tokens it and all before it are, estimated.
    pub tokens: u64,
}

/// What a request is expected to cost.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Tokens of the prompt, estimated.
    pub prompt_tokens: u64,
    /// Tokens of the answer, expected.
    pub output_tokens: u64,
    /// What ties it to a backend.
    pub affinity: Affinity,
}

/// A backend that could be asked, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The server.
    pub backend: &'a Arc<Backend>,
    /// Its number: the same in every pick, through all configurations that have it.
    pub index: usize,
    /// Its share of the work; above 0. Less than the configured weight while a backend that has come back warms up.
    pub weight: f64,
    /// Requests whose answers have not ended.
    pub in_flight: usize,
    /// Of these, those whose answers have not begun.
    pub waiting: usize,
    /// Tokens of their prompts and answers, as expected.
    pub tokens_in_flight: u64,
    /// Tokens of the prompts among them whose answers have not begun: what a new prompt waits for.
    pub tokens_waiting: u64,
    /// How long a first byte takes there, failures counted as very long; `None` before the first measurement.
    pub latency: Option<Duration>,
    /// Whether anything has come of a request there, if only an answer that blames the request and is not measured.
    pub tried: bool,
    /// Requests there that are not this proxy's, as the backend says itself; 0 where it has not said so lately. Seconds old,
    /// unlike `in_flight`.
    pub others: f64,
    /// All that it says of its own load.
    pub load: Option<Load>,
}

/// The candidate that a policy chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its position among the candidates.
    pub at: usize,
    /// Why, for people who read the record.
    pub reason: Cow<'static, str>,
    /// Tokens of the prompt that it is taken to have in its cache: nobody waits for those.
    pub cached: u64,
}

/// All that a policy is made of: of two that are equal, one can do the work of both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recipe {
    strategy: LoadBalance,
    session: Option<SessionConfig>,
    prefix_aware: Option<PrefixAwareConfig>,
}

/// The position of the one with the least cost; in turn among equals.
fn cheapest<C: PartialOrd>(
    candidates: &[Candidate<'_>],
    ties: &RoundRobin,
    cost: impl Fn(&Candidate<'_>) -> C,
) -> usize {
    let Some((first, rest)) = candidates.split_first() else { return 0 };
    let (mut least, mut at, mut equals) = (cost(first), 0, 1);
    for (position, candidate) in rest.iter().enumerate() {
        let cost = cost(candidate);
        if cost < least {
            (least, at, equals) = (cost, position + 1, 1);
        } else if cost == least {
            equals += 1;
        }
    }
    if equals < 2 {
        return at;
    }
    let (positions, equals): (Vec<usize>, Vec<Candidate<'_>>) = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| cost(candidate) == least)
        .map(|(position, candidate)| (position, *candidate))
        .unzip();
    positions[ties.next(&equals)]
}

// === impl Recipe ===

impl Recipe {
    /// What a configuration says of `strategy`.
    pub(crate) fn of(strategy: LoadBalance, routing: &RoutingConfig) -> Self {
        Self {
            strategy,
            session: (strategy == LoadBalance::Session).then(|| routing.session.clone()),
            prefix_aware: (strategy == LoadBalance::PrefixAware).then(|| routing.prefix_aware.clone()),
        }
    }

    /// Whether one does the work of all rules and models: what it remembers is bounded once, and is of each model anyway.
    pub(crate) fn is_shared(&self) -> bool {
        self.strategy == LoadBalance::PrefixAware
    }

    pub(crate) fn make(&self) -> Arc<dyn Policy> {
        match self.strategy {
            LoadBalance::RoundRobin => Arc::new(RoundRobin::new()),
            LoadBalance::Random => Arc::new(Random::new()),
            LoadBalance::LeastConnections => Arc::new(LeastConnections::new()),
            LoadBalance::LatencyBased => Arc::new(LatencyBased::new()),
            LoadBalance::LeastTokens => Arc::new(LeastTokens::new()),
            LoadBalance::Session => Arc::new(Session::new(&self.session.clone().unwrap_or_default())),
            LoadBalance::PrefixAware => Arc::new(PrefixAware::new(&self.prefix_aware.clone().unwrap_or_default())),
        }
    }
}

// === impl Work ===

impl Work {
    /// Of what is asked for, as far as that is known.
    pub(crate) fn of(call: Option<&Call>, affinity: Affinity) -> Self {
        let prompt_tokens = call.map_or(0, |call| call.prompt_estimate);
        let mut work = Self { prompt_tokens, output_tokens: 0, affinity };
        work.expect_output(call, COMMON_OUTPUT);
        work
    }

    /// Its answers are like others, of `expected` tokens each, as far as `call` does not bound them.
    pub(crate) fn expect_output(&mut self, call: Option<&Call>, expected: u64) {
        let makes_text = call.is_none_or(|call| call.endpoint.makes_text());
        let answers = call.map_or(1, |call| call.answers.into());
        let expected = if makes_text { expected.saturating_mul(answers) } else { 0 };
        self.output_tokens = call.and_then(|call| call.max_output).map_or(expected, |max| max.min(expected));
    }

    /// Of the prompt and the answer.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.output_tokens)
    }
}

// === impl Candidate ===

impl<'a> Candidate<'a> {
    /// A backend that is idle, and of which nothing else is known.
    pub fn new(backend: &'a Arc<Backend>, index: usize) -> Self {
        Self {
            backend,
            index,
            weight: 1.0,
            in_flight: 0,
            waiting: 0,
            tokens_in_flight: 0,
            tokens_waiting: 0,
            latency: None,
            tried: false,
            others: 0.0,
            load: None,
        }
    }

    /// Requests there, this proxy's and others'.
    pub fn requests(&self) -> f64 {
        self.in_flight as f64 + self.others
    }
}

// === impl Choice ===

impl Choice {
    /// The candidate at this position, for this reason.
    pub fn new(at: usize, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { at, reason: reason.into(), cached: 0 }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use llmproxy_core::Endpoint;

    use super::*;

    /// Backends of these weights, about which nothing else is known.
    #[derive(Debug)]
    pub(crate) struct Field {
        backends: Vec<Arc<Backend>>,
        pub(crate) weights: Vec<f64>,
        pub(crate) in_flight: Vec<usize>,
        /// Requests whose answers have not begun.
        pub(crate) queue: Vec<usize>,
        pub(crate) others: Vec<f64>,
        pub(crate) tokens: Vec<u64>,
        pub(crate) waiting: Vec<u64>,
        pub(crate) latency: Vec<Option<Duration>>,
        pub(crate) tried: Vec<bool>,
    }

    #[test]
    fn a_policy_is_another_one_where_what_it_is_made_of_is() {
        let one = RoutingConfig::default();
        let mut other = RoutingConfig { timeout: Duration::from_secs(7), ..RoutingConfig::default() };
        assert_eq!(Recipe::of(LoadBalance::Session, &one), Recipe::of(LoadBalance::Session, &other));
        other.session.cookie = Some("sid".into());
        assert_ne!(Recipe::of(LoadBalance::Session, &one), Recipe::of(LoadBalance::Session, &other));
        assert_eq!(Recipe::of(LoadBalance::Random, &one), Recipe::of(LoadBalance::Random, &other));
        assert_ne!(Recipe::of(LoadBalance::Random, &one), Recipe::of(LoadBalance::RoundRobin, &one));
    }

    #[test]
    fn an_answer_is_expected_where_text_is_made() {
        for (path, answers, max, expected) in [
            ("/v1/chat/completions", 1, None, COMMON_OUTPUT),
            ("/v1/chat/completions", 1, Some(10), 10),
            ("/v1/chat/completions", 4, None, 4 * COMMON_OUTPUT),
            ("/v1/chat/completions", 4, Some(40), 40),
            ("/v1/audio/transcriptions", 1, None, COMMON_OUTPUT),
            ("/v1/unheard/of", 1, None, COMMON_OUTPUT),
            ("/v1/embeddings", 1, None, 0),
            ("/v1/rerank", 1, None, 0),
            ("/v1/messages/count_tokens", 1, None, 0),
        ] {
            let mut call = Call::new(Endpoint::of(path));
            (call.answers, call.max_output) = (answers, max);
            assert_eq!(Work::of(Some(&call), Affinity::default()).output_tokens, expected, "{path}");
        }
    }

    impl Field {
        pub(crate) fn new(weights: &[u32]) -> Self {
            Self {
                backends: (0..weights.len())
                    .map(|index| Arc::new(Backend::new(&format!("http://{index}")).unwrap()))
                    .collect(),
                weights: weights.iter().map(|weight| f64::from(*weight)).collect(),
                in_flight: vec![0; weights.len()],
                queue: vec![0; weights.len()],
                others: vec![0.0; weights.len()],
                tokens: vec![0; weights.len()],
                waiting: vec![0; weights.len()],
                latency: vec![None; weights.len()],
                tried: vec![false; weights.len()],
            }
        }

        pub(crate) fn candidates(&self) -> Vec<Candidate<'_>> {
            (0..self.weights.len())
                .map(|index| Candidate {
                    weight: self.weights[index],
                    in_flight: self.in_flight[index],
                    waiting: self.queue[index],
                    others: self.others[index],
                    tokens_in_flight: self.tokens[index],
                    tokens_waiting: self.waiting[index],
                    latency: self.latency[index],
                    tried: self.tried[index],
                    ..Candidate::new(&self.backends[index], index)
                })
                .collect()
        }

        /// Where the next request goes.
        pub(crate) fn pick(&self, policy: &dyn Policy) -> usize {
            self.pick_of(policy, &Work::default())
        }

        /// Where the next request goes, which is this one.
        pub(crate) fn pick_of(&self, policy: &dyn Policy, work: &Work) -> usize {
            policy.pick(work, &self.candidates()).at
        }

        /// How often each is picked in `rounds` picks.
        pub(crate) fn count(&self, policy: &dyn Policy, rounds: usize) -> Vec<usize> {
            let candidates = self.candidates();
            let mut counts = vec![0; candidates.len()];
            for _ in 0..rounds {
                counts[candidates[policy.pick(&Work::default(), &candidates).at].index] += 1;
            }
            counts
        }
    }

    #[test]
    fn a_policy_is_made_anew_where_what_it_is_made_of_changes() {
        let changed = PrefixAwareConfig { memory: 2 << 20, ..PrefixAwareConfig::default() };
        let [old, new] = [PrefixAwareConfig::default(), changed]
            .map(|prefix_aware| RoutingConfig { prefix_aware, ..RoutingConfig::default() });
        let recipe = Recipe::of;
        assert_ne!(recipe(LoadBalance::PrefixAware, &old), recipe(LoadBalance::PrefixAware, &new));
        assert_eq!(recipe(LoadBalance::PrefixAware, &old), recipe(LoadBalance::PrefixAware, &old.clone()));
        assert_eq!(recipe(LoadBalance::RoundRobin, &old), recipe(LoadBalance::RoundRobin, &new));
        assert_ne!(recipe(LoadBalance::RoundRobin, &old), recipe(LoadBalance::PrefixAware, &old));
    }
}
