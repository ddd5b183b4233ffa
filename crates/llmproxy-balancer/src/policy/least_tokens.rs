//! The one with the fewest tokens still to be made.

use super::{Candidate, Choice, Policy, RoundRobin, Work, cheapest};

/// What a token that is in flight counts beside one of a prompt that waits. A server computes prompts one after the other
/// and answers all at once, so that a prompt delays the next one by its whole length, and an answer, or the context that it
/// is made from, by little. It still counts: memory is what a server runs out of.
const IN_FLIGHT: f64 = 0.05;

/// The one with the fewest tokens outstanding, with this request and over its weight; in turn among equals. So a prompt of
/// 100,000 tokens is not equal to a hello.
///
/// Prompts whose answers have not begun count whole, and all that is in flight, prompts and expected answers, a twentieth
/// besides. What an answer has already brought is not taken off: that would be work for every chunk, and what a server
/// keeps in memory for it grows meanwhile.
#[derive(Debug, Default)]
pub struct LeastTokens {
    ties: RoundRobin,
}

// === impl LeastTokens ===

impl LeastTokens {
    /// Starts with the first backend of the greatest weight.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for LeastTokens {
    fn pick(&self, work: &Work, candidates: &[Candidate<'_>]) -> Choice {
        // Where nobody is busy, requests that come one after the other want their turn.
        if candidates.iter().all(|candidate| candidate.in_flight == 0) {
            return Choice::new(self.ties.next(candidates), "fewest tokens");
        }
        let cost = |candidate: &Candidate<'_>| {
            let waiting = candidate.tokens_waiting as f64 + work.prompt_tokens as f64;
            let in_flight = candidate.tokens_in_flight as f64 + work.tokens() as f64;
            // Where nothing is known of sizes, requests count.
            (
                (waiting + IN_FLIGHT * in_flight) / candidate.weight,
                (candidate.in_flight as f64 + 1.0) / candidate.weight,
            )
        };
        Choice::new(cheapest(candidates, &self.ties, cost), "fewest tokens")
    }

    fn forget(&self, index: usize) {
        self.ties.forget(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::Field;

    fn work(prompt_tokens: u64, output_tokens: u64) -> Work {
        Work { prompt_tokens, output_tokens, ..Work::default() }
    }

    fn hello() -> Work {
        work(10, 100)
    }

    /// `work` comes to the backend that is picked for it.
    fn send(field: &mut Field, policy: &LeastTokens, work: &Work) -> usize {
        let picked = field.pick_of(policy, work);
        field.in_flight[picked] += 1;
        field.tokens[picked] += work.tokens();
        field.waiting[picked] += work.prompt_tokens;
        picked
    }

    #[test]
    fn a_long_prompt_is_not_equal_to_a_hello() {
        let (policy, mut field) = (LeastTokens::new(), Field::new(&[1, 1]));
        let long = send(&mut field, &policy, &work(100_000, 300));
        for _ in 0..500 {
            assert_ne!(send(&mut field, &policy, &hello()), long);
        }
    }

    #[test]
    fn a_prompt_counts_for_less_once_its_answer_has_begun() {
        let (policy, mut field) = (LeastTokens::new(), Field::new(&[1, 1]));
        (field.in_flight, field.tokens, field.waiting) = (vec![1, 1], vec![10_000, 2_000], vec![0, 2_000]);
        assert_eq!(field.pick_of(&policy, &hello()), 0);
        field.waiting[1] = 0;
        assert_eq!(field.pick_of(&policy, &hello()), 1);
    }

    #[test]
    fn requests_of_one_size_are_spread_by_weight() {
        let (policy, mut field) = (LeastTokens::new(), Field::new(&[5, 3, 2]));
        for _ in 0..100 {
            send(&mut field, &policy, &work(500, 300));
        }
        for (got, share) in field.in_flight.iter().zip([50, 30, 20]) {
            assert!(got.abs_diff(share) <= 1, "{field:?}");
        }
    }

    #[test]
    fn the_size_of_this_one_counts_where_weights_differ() {
        let (policy, mut field) = (LeastTokens::new(), Field::new(&[10, 1]));
        (field.in_flight, field.waiting) = (vec![1, 0], vec![500, 0]);
        assert_eq!(field.pick_of(&policy, &hello()), 1);
        assert_eq!(field.pick_of(&policy, &work(20_000, 100)), 0, "it would keep the small one busy for long");
    }

    #[test]
    fn where_sizes_are_not_known_requests_count() {
        let (policy, mut field) = (LeastTokens::new(), Field::new(&[1, 1, 1]));
        field.in_flight = vec![4, 2, 3];
        assert_eq!(field.pick(&policy), 1);
        field.in_flight = vec![2, 1, 1];
        assert_eq!(field.count(&policy, 10), [0, 5, 5]);
    }

    #[test]
    fn one_after_the_other_they_take_turns_by_weight() {
        assert_eq!(Field::new(&[3, 1]).count(&LeastTokens::new(), 20), [15, 5]);
    }
}
