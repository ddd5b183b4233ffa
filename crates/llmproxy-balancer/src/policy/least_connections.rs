//! The one with the fewest requests in flight.

use super::{Candidate, Choice, Policy, RoundRobin, Work};

/// The one with the fewest requests in flight, up to their last bytes, over its weight; in turn among equals.
#[derive(Debug, Default)]
pub struct LeastConnections {
    ties: RoundRobin,
}

// === impl LeastConnections ===

impl LeastConnections {
    /// Starts with the first backend of the greatest weight.
    pub fn new() -> Self {
        Self::default()
    }
}

impl LeastConnections {
    fn least(&self, candidates: &[Candidate<'_>]) -> usize {
        // Where nobody is busy, loads say nothing, and requests that come one after the other still want their turn.
        if candidates.iter().all(|candidate| candidate.in_flight == 0) {
            return self.ties.next(candidates);
        }
        let least =
            candidates.iter().copied().reduce(|least, other| if is_less(&other, &least) { other } else { least });
        let Some(least) = least else { return 0 };
        let (positions, equals): (Vec<usize>, Vec<Candidate<'_>>) = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| !is_less(&least, candidate))
            .map(|(position, candidate)| (position, *candidate))
            .unzip();
        if let [only] = positions[..] { only } else { positions[self.ties.next(&equals)] }
    }
}

impl Policy for LeastConnections {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        Choice::new(self.least(candidates), "fewest requests")
    }

    fn forget(&self, index: usize) {
        self.ties.forget(index);
    }
}

/// Compares the loads that the two would have with half a request more. With the request that is at hand counted whole,
/// a heavy backend among many light ones gets too much; not counted at all, too little.
fn is_less(a: &Candidate<'_>, b: &Candidate<'_>) -> bool {
    let load = |candidate: &Candidate<'_>| 2.0 * candidate.in_flight as f64 + 1.0;
    load(a) * b.weight < load(b) * a.weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::Field;

    fn spread(weights: &[u32], streams: usize) -> Vec<usize> {
        let policy = LeastConnections::new();
        let mut field = Field::new(weights);
        for _ in 0..streams {
            let picked = field.pick(&policy);
            field.in_flight[picked] += 1;
        }
        field.in_flight
    }

    #[test]
    fn twenty_long_streams_are_spread_by_weight_within_one() {
        for weights in [&[1, 1][..], &[3, 1], &[1, 3], &[5, 3, 2], &[10, 1, 1, 1, 1], &[7, 1], &[1, 1, 1], &[100, 99]] {
            let total: u32 = weights.iter().sum();
            for (got, weight) in spread(weights, 20).into_iter().zip(weights) {
                let share = 20.0 * f64::from(*weight) / f64::from(total);
                assert!((got as f64 - share).abs() <= 1.0, "{weights:?}: {got} of {share}");
            }
        }
    }

    #[test]
    fn the_one_with_the_fewest_requests_is_picked() {
        let mut field = Field::new(&[1, 1, 1]);
        field.in_flight = vec![4, 2, 3];
        assert_eq!(field.pick(&LeastConnections::new()), 1);
    }

    #[test]
    fn requests_one_after_the_other_take_turns_by_weight() {
        assert_eq!(Field::new(&[3, 1]).count(&LeastConnections::new(), 20), [15, 5]);
    }

    #[test]
    fn equals_take_turns() {
        let mut field = Field::new(&[1, 1, 1]);
        field.in_flight = vec![2, 1, 1];
        assert_eq!(field.count(&LeastConnections::new(), 10), [0, 5, 5]);
    }
}
