//! Any one, by weight.

use super::{Candidate, Choice, Policy, Work};

/// Any one, by weight: weights 3 and 1 give the first three of four requests on average.
///
/// It knows nothing and needs to know nothing, so several proxies that share backends do not fall into step with each other.
#[derive(Debug, Default)]
pub struct Random {}

// === impl Random ===

impl Random {
    /// Knows nothing of its own.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for Random {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut left = fastrand::f64() * total;
        for (at, candidate) in candidates.iter().enumerate() {
            left -= candidate.weight;
            if left < 0.0 {
                return Choice::new(at, "at random");
            }
        }
        // Rounding may leave a crumb behind the last one.
        Choice::new(candidates.len().saturating_sub(1), "at random")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::Field;

    /// So far from its share at most, of 4,000 picks: more than four standard deviations.
    fn check(weights: &[u32]) {
        fastrand::seed(7);
        let counts = Field::new(weights).count(&Random::new(), 4000);
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let share = 4000.0 * f64::from(*weight) / f64::from(total);
            assert!((*count as f64 - share).abs() < 130.0, "{weights:?}: {counts:?}");
        }
    }

    #[test]
    fn weights_are_shares() {
        check(&[1]);
        check(&[1, 1, 1]);
        check(&[3, 1]);
        check(&[1, 1000]);
        check(&[5, 3, 2]);
    }

    #[test]
    fn what_is_in_flight_does_not_count() {
        fastrand::seed(7);
        let mut field = Field::new(&[1, 1]);
        field.in_flight = vec![1000, 0];
        assert!(field.count(&Random::new(), 1000)[0] > 400);
    }

    #[test]
    fn it_does_not_take_turns() {
        fastrand::seed(7);
        let (policy, field) = (Random::new(), Field::new(&[1, 1]));
        let order: Vec<usize> = (0..100).map(|_| field.pick(&policy)).collect();
        assert!(order.windows(3).any(|three| three == [0, 0, 0]) && order.windows(3).any(|three| three == [1, 1, 1]));
    }
}
