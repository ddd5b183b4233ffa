//! In turn, by weight.

use std::sync::{Mutex, PoisonError};

use super::{Candidate, Choice, Policy, Work};

/// In turn, by weight, and smoothly: weights 3 and 1 give a, a, b, a rather than a, a, a, b.
///
/// Each pick credits every candidate with its weight, takes the one with the most credit and charges it for all of them. What
/// is had or owed is no more than the greatest such charge since weights changed: they may have been greater before, and
/// nobody waits for that.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    /// By the backend's index. A backend that is out neither gains nor loses.
    accounts: Vec<Account>,
    /// The greatest charge.
    most: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    credit: f64,
    /// At its last pick; nothing where it had none.
    weight: f64,
}

// === impl RoundRobin ===

impl RoundRobin {
    /// Starts with the first backend of the greatest weight.
    pub fn new() -> Self {
        Self::default()
    }
}

impl RoundRobin {
    /// The position of the next one.
    pub(super) fn next(&self, candidates: &[Candidate<'_>]) -> usize {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let Turns { accounts, most } = &mut *turns;
        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut has_changed = false;
        for candidate in candidates {
            if accounts.len() <= candidate.index {
                accounts.resize(candidate.index + 1, Account::default());
            }
            let before = std::mem::replace(&mut accounts[candidate.index].weight, candidate.weight);
            has_changed |= before != 0.0 && before != candidate.weight;
        }
        *most = if has_changed { total } else { most.max(total) };
        let mut best = 0;
        for (position, candidate) in candidates.iter().enumerate() {
            let own = &mut accounts[candidate.index].credit;
            *own = own.clamp(-*most, *most) + candidate.weight;
            if accounts[candidate.index].credit > accounts[candidates[best].index].credit {
                best = position;
            }
        }
        accounts[candidates[best].index].credit -= total;
        best
    }
}

impl Policy for RoundRobin {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        Choice::new(self.next(candidates), "its turn")
    }

    fn forget(&self, index: usize) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = turns.accounts.get_mut(index) {
            *account = Account::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::policy::tests::Field;

    #[test]
    fn weights_are_shares() {
        assert_eq!(Field::new(&[1, 1]).count(&RoundRobin::new(), 10), [5, 5]);
        assert_eq!(Field::new(&[3, 1]).count(&RoundRobin::new(), 20), [15, 5]);
        assert_eq!(Field::new(&[5, 3, 2]).count(&RoundRobin::new(), 30), [15, 9, 6]);
    }

    #[test]
    fn the_heavy_one_does_not_get_its_whole_share_in_a_row() {
        let (policy, field) = (RoundRobin::new(), Field::new(&[3, 1]));
        let candidates = field.candidates();
        let order: Vec<usize> = (0..8).map(|_| policy.next(&candidates)).collect();
        assert_eq!(order, [0, 0, 1, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn a_lower_weight_keeps_nobody_waiting() {
        const MOST: u32 = u32::MAX;
        for (before, picks) in [
            ([100, 100], 1),
            ([1000, 1000], 3),
            ([MOST, MOST], 1),
            ([MOST, MOST], 2),
            ([1, MOST], 300),
            ([MOST, 1], 300),
        ] {
            for (after, expected) in [([1, 1], [10, 10]), ([3, 1], [15, 5])] {
                let (policy, mut field) = (RoundRobin::new(), Field::new(&before));
                field.count(&policy, picks);
                field.weights = after.map(f64::from).to_vec();
                for (count, expected) in field.count(&policy, 20).into_iter().zip(expected) {
                    assert!(count.abs_diff(expected) <= 2, "{before:?} for {picks}, then {after:?}: {count}");
                }
                assert_eq!(field.count(&policy, 20), expected, "and then as if it had been so for ever");
            }
        }
    }

    #[test]
    fn requests_that_few_can_serve_are_shared_among_them_whatever_others_are() {
        let policy = RoundRobin::new();
        let field = Field::new(&[1; 8]);
        let all = field.candidates();
        let mut counts = [0_usize; 2];
        for _ in 0..100 {
            policy.next(&all);
            counts[policy.next(&all[..2])] += 1;
        }
        assert!(counts[0].abs_diff(counts[1]) <= 8, "{counts:?}");
    }

    proptest! {
        #[test]
        fn whatever_the_weights_were_shares_are_those_of_today(
            before in vec((vec(prop_oneof![1_u32..10, 1..=u32::MAX], 6), 1_usize..50), 0..5),
            after in vec(1_u32..6, 6),
        ) {
            let (policy, mut field) = (RoundRobin::new(), Field::new(&after));
            for (weights, picks) in before {
                field.weights = weights.into_iter().map(f64::from).collect();
                field.count(&policy, picks);
            }
            field.weights = after.iter().copied().map(f64::from).collect();
            let counts = field.count(&policy, 3 * after.iter().sum::<u32>() as usize);
            for (count, weight) in counts.into_iter().zip(after) {
                prop_assert!(count.abs_diff(3 * weight as usize) <= 2, "{count} of a weight of {weight}");
            }
        }
    }

    #[test]
    fn a_backend_that_comes_back_gets_its_share_and_not_what_it_missed() {
        let (policy, field) = (RoundRobin::new(), Field::new(&[1, 1]));
        let candidates = field.candidates();
        for _ in 0..100 {
            assert_eq!(policy.next(&candidates[..1]), 0);
        }
        assert_eq!(field.count(&policy, 10), [5, 5]);
    }
}
