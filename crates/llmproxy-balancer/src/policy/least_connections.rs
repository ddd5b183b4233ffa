//! The one with the fewest requests in flight.

use super::{Candidate, Choice, Policy, RoundRobin, Work, cheapest};

/// It is looked at so many requests ahead whether one may be kept from a backend: enough where weights are not far apart, and
/// little work.
const FORESIGHT: u32 = 100;

/// The one with the fewest requests in flight, up to their last bytes, over its weight; among those that are not above
/// their share, and can be done without for now, the one where the fewest tokens of prompts wait.
///
/// The fewest of all is not the best where it does not matter: many requests in a row would go where some answers happen to
/// have ended, and each waits behind the prompts of those before it, while elsewhere nobody waits.
///
/// What holds, with a backend's share being its weight's part of all that is in flight:
///
/// - No pick lifts a backend a whole request or more above its share, whatever was there before.
/// - From nothing in flight, as long as requests only come: every backend is less than one request from its share, whatever
///   their prompts.
///
/// Answers that end may leave a backend as far below its share as chance will have it. What others than this proxy have there
/// counts as well, where a backend tells of it.
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

    /// The position of the one to ask.
    pub(super) fn least(&self, work: &Work, candidates: &[Candidate<'_>]) -> usize {
        // Where nobody is busy, loads say nothing, and requests that come one after the other still want their turn.
        if candidates.iter().all(|candidate| candidate.requests() == 0.0) {
            return self.ties.next(candidates);
        }
        let total = 1.0 + candidates.iter().map(Candidate::requests).sum::<f64>();
        let weights: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        // Where nobody waits, this one's prompt is no reason to prefer whoever has the greatest weight.
        let nobody_waits = candidates.iter().all(|candidate| candidate.tokens_waiting == 0);
        let prompt = if nobody_waits { 0 } else { work.prompt_tokens };
        // Some are below their shares of what there will be: all of them together are, by one.
        let is_above = |candidate: &Candidate<'_>| candidate.requests() * weights >= total * candidate.weight;
        let waiting =
            |candidate: &Candidate<'_>| candidate.tokens_waiting.saturating_add(prompt) as f64 / candidate.weight;
        // When its share will be one more than it has, in proportion.
        let next = |candidate: &Candidate<'_>| (candidate.requests() + 1.0) / candidate.weight;
        let chosen =
            cheapest(candidates, &self.ties, |candidate| (is_above(candidate), waiting(candidate), next(candidate)));
        // Where nobody waits, it is the quota method of apportionment, which never strays a whole seat from a share (Balinski
        // and Young, "The Quota Method of Apportionment", 1975); and of equals that are below no one is due before another.
        if nobody_waits || candidates.iter().all(|candidate| candidate.weight == candidates[0].weight) {
            return chosen;
        }
        // Else prompts that wait may have kept requests from some until these need all that come up to some time: then one of
        // them has to have this one. Once the chosen one is among them, or nobody has more than its share, that is no matter.
        let lacks = |candidate: &Candidate<'_>, total: f64| {
            ((candidate.weight * total / weights).floor() - candidate.requests()).ceil().max(0.0)
        };
        for coming in 0..FORESIGHT {
            let then = total + f64::from(coming);
            let is_over = |candidate: &Candidate<'_>| candidate.requests() * weights > then * candidate.weight;
            if lacks(&candidates[chosen], then) > 0.0 || !candidates.iter().any(is_over) {
                return chosen;
            }
            if candidates.iter().map(|candidate| lacks(candidate, then)).sum::<f64>() > f64::from(coming) {
                return cheapest(candidates, &self.ties, |candidate| {
                    let can_wait = lacks(candidate, then) == 0.0;
                    (is_above(candidate), can_wait, waiting(candidate), next(candidate))
                });
            }
        }
        // Whoever is due first is always right.
        cheapest(candidates, &self.ties, |candidate| (is_above(candidate), next(candidate)))
    }
}

impl Policy for LeastConnections {
    fn pick(&self, work: &Work, candidates: &[Candidate<'_>]) -> Choice {
        Choice::new(self.least(work, candidates), "fewest requests")
    }

    fn forget(&self, index: usize) {
        self.ties.forget(index);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::policy::tests::Field;

    /// How many requests `field` has more than its share, for each backend.
    fn above(field: &Field) -> Vec<f64> {
        let (total, weights) = (field.in_flight.iter().sum::<usize>() as f64, field.weights.iter().sum::<f64>());
        let shares = field.weights.iter().map(|weight| total * weight / weights);
        field.in_flight.iter().zip(shares).map(|(load, share)| *load as f64 - share).collect()
    }

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
    fn requests_of_others_count_like_ours() {
        let mut field = Field::new(&[1, 1]);
        field.in_flight = vec![1, 3];
        field.others = vec![5.0, 0.0];
        assert_eq!(field.pick(&LeastConnections::new()), 1);
        field.in_flight = vec![0, 0];
        assert_eq!(field.count(&LeastConnections::new(), 10), [0, 10], "one is idle, the other is not");
    }

    #[test]
    fn equals_take_turns() {
        let mut field = Field::new(&[1, 1, 1]);
        field.in_flight = vec![2, 1, 1];
        assert_eq!(field.count(&LeastConnections::new(), 10), [0, 5, 5]);
    }

    #[test]
    fn where_prompts_wait_the_next_does_not_as_long_as_another_one_is_below_its_share() {
        let mut field = Field::new(&[1, 1, 1]);
        (field.in_flight, field.waiting) = (vec![4, 5, 9], vec![800, 100, 0]);
        assert_eq!(
            field.pick(&LeastConnections::new()),
            1,
            "the third has more than its share, the first waits longer"
        );
        field.in_flight[1] = 9;
        assert_eq!(field.pick(&LeastConnections::new()), 0, "the only one below its share");
    }

    #[test]
    fn a_long_prompt_at_the_heavy_one_does_not_keep_its_share_from_it() {
        let policy = LeastConnections::new();
        let mut field = Field::new(&[10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        for prompt in std::iter::once(60_000).chain([2; 10]) {
            let picked = field.pick_of(&policy, &Work { prompt_tokens: prompt, ..Work::default() });
            field.in_flight[picked] += 1;
            field.waiting[picked] += prompt;
        }
        assert_eq!((field.waiting[0] >= 60_000, field.in_flight[0]), (true, 5), "of eleven, and its share is 5.5");
    }

    proptest! {
        #[test]
        fn no_pick_lifts_a_backend_a_request_above_its_share(
            weights in vec(1_u32..20, 1..7),
            steps in vec((any::<bool>(), any::<prop::sample::Index>(), 0_u64..5000), 1..200),
        ) {
            let (policy, mut field) = (LeastConnections::new(), Field::new(&weights));
            for (comes, which, prompt) in steps {
                let at = which.index(weights.len());
                match comes {
                    true => {
                        let work = Work { prompt_tokens: prompt, ..Work::default() };
                        let picked = policy.pick(&work, &field.candidates()).at;
                        field.in_flight[picked] += 1;
                        field.waiting[picked] += prompt;
                        prop_assert!(above(&field)[picked] < 1.0 - 1e-9, "{field:?}");
                    }
                    // Sometimes all that wait there have begun.
                    false if field.in_flight[at] == 0 || prompt > 2500 => field.waiting[at] = 0,
                    false => field.in_flight[at] -= 1,
                }
            }
        }

        #[test]
        fn as_requests_come_all_stay_within_one_of_their_shares(
            weights in prop_oneof![vec(1_u32..20, 1..9), vec(1_u32..1000, 1..5), (1_usize..9).prop_map(|count| vec![1; count])],
            turns in 0_usize..20,
            prompts in vec((prop_oneof![Just(0), 0_u64..50_000], any::<bool>(), any::<prop::sample::Index>()), 1..150),
        ) {
            let (policy, mut field) = (LeastConnections::new(), Field::new(&weights));
            // Whoever's turn it is when the first one comes.
            field.count(&policy, turns);
            for (prompt, waits, begun) in prompts {
                let picked = field.pick_of(&policy, &Work { prompt_tokens: prompt, ..Work::default() });
                field.in_flight[picked] += 1;
                field.waiting[picked] += if waits { prompt } else { 0 };
                if !waits {
                    field.waiting[begun.index(weights.len())] = 0;
                }
                prop_assert!(above(&field).iter().all(|above| above.abs() < 1.0 - 1e-9), "{field:?}");
            }
        }
    }
}
