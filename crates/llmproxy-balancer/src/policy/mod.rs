//! How one of several backends is chosen: the decision, without HTTP.

mod latency_based;
mod least_connections;
mod round_robin;

use std::{fmt, sync::Arc, time::Duration};

use llmproxy_core::Backend;

pub use latency_based::LatencyBased;
pub use least_connections::LeastConnections;
pub use round_robin::RoundRobin;

use crate::config::LoadBalance;

/// Chooses among backends that could all do the work.
///
/// ```
/// use llmproxy_balancer::{Candidate, Policy};
///
/// /// The one with the fewest requests in flight, whatever its weight.
/// #[derive(Debug)]
/// struct Emptiest;
///
/// impl Policy for Emptiest {
///     fn pick(&self, candidates: &[Candidate<'_>]) -> usize {
///         (0..candidates.len()).min_by_key(|at| candidates[*at].in_flight).unwrap_or(0)
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send + Sync {
    /// The position in `candidates`, which is never empty, of the one to ask. Called with a lock held that every other
    /// pick of the same pool waits for: it must be quick.
    fn pick(&self, candidates: &[Candidate<'_>]) -> usize;
}

/// A backend that could be asked, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The server.
    pub backend: &'a Arc<Backend>,
    /// Its place among all backends of the configuration: the same in every pick, whoever else is a candidate.
    pub index: usize,
    /// Its share of the work; never 0.
    pub weight: u32,
    /// Requests whose answers have not ended.
    pub in_flight: usize,
    /// How long a first byte takes there, failures counted as very long; `None` before the first measurement.
    pub latency: Option<Duration>,
    /// Whether anything has come of a request there, if only an answer that blames the request and is not measured.
    pub tried: bool,
}

/// The policy that a configuration names.
pub(crate) fn policy(strategy: LoadBalance) -> Arc<dyn Policy> {
    match strategy {
        LoadBalance::RoundRobin => Arc::new(RoundRobin::new()),
        LoadBalance::LeastConnections => Arc::new(LeastConnections::new()),
        LoadBalance::LatencyBased => Arc::new(LatencyBased::new()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Backends of these weights, about which nothing else is known.
    pub(crate) struct Field {
        backend: Arc<Backend>,
        pub(crate) weights: Vec<u32>,
        pub(crate) in_flight: Vec<usize>,
        pub(crate) latency: Vec<Option<Duration>>,
        pub(crate) tried: Vec<bool>,
    }

    impl Field {
        pub(crate) fn new(weights: &[u32]) -> Self {
            Self {
                backend: Arc::new(Backend::new("http://a").unwrap()),
                weights: weights.to_vec(),
                in_flight: vec![0; weights.len()],
                latency: vec![None; weights.len()],
                tried: vec![false; weights.len()],
            }
        }

        pub(crate) fn candidates(&self) -> Vec<Candidate<'_>> {
            (0..self.weights.len())
                .map(|index| Candidate {
                    backend: &self.backend,
                    index,
                    weight: self.weights[index],
                    in_flight: self.in_flight[index],
                    latency: self.latency[index],
                    tried: self.tried[index],
                })
                .collect()
        }

        /// How often each is picked in `rounds` picks.
        pub(crate) fn count(&self, policy: &dyn Policy, rounds: usize) -> Vec<usize> {
            let candidates = self.candidates();
            let mut counts = vec![0; candidates.len()];
            for _ in 0..rounds {
                counts[candidates[policy.pick(&candidates)].index] += 1;
            }
            counts
        }
    }
}
