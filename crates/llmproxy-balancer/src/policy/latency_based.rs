//! The one whose first byte comes soonest.

use std::cmp::Ordering;

use super::{Candidate, Choice, Policy, RoundRobin, Work};

/// Of two taken at random, the one whose first byte can be expected sooner, over its weight.
///
/// Two, because the fastest of all would get every request until the next measurement, and by then be the slowest. What is
/// expected is the time that first bytes took there, a mean that follows a rise at once, times what is there now: a
/// measurement tells of a request that has got its first byte, and those that came since have not.
///
/// Two that are idle and about as fast take turns by weight.
#[derive(Debug, Default)]
pub struct LatencyBased {
    ties: RoundRobin,
}

/// Times that differ by less than this factor are about the same: so much is chance.
const ALIKE: f64 = 1.25;

// === impl LatencyBased ===

impl LatencyBased {
    /// Knows nothing of its own: the measurements are the backends'.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a first byte takes there; `assumed` where that is not known.
    fn latency(candidate: &Candidate<'_>, assumed: f64) -> f64 {
        candidate.latency.map_or(assumed, |latency| latency.as_secs_f64())
    }

    /// Those that have nothing to do and are about as fast as the fastest, which answers in `least`.
    fn fast_and_idle(candidates: &[Candidate<'_>], least: f64) -> Vec<usize> {
        let is_one =
            |candidate: &Candidate<'_>| candidate.in_flight == 0 && Self::latency(candidate, least) <= least * ALIKE;
        (0..candidates.len()).filter(|at| is_one(&candidates[*at])).collect()
    }

    /// The cheaper of `a` and `b`; at the same price the one with less to do, and else either.
    fn cheaper(candidates: &[Candidate<'_>], assumed: f64, a: usize, b: usize) -> usize {
        let cost = |at: usize| {
            let candidate = &candidates[at];
            let latency = Self::latency(candidate, assumed);
            // A request waits for those before it whose answers have not begun, and shares the server with all.
            latency * (candidate.waiting as f64 + 1.0) * (candidate.in_flight as f64 + 1.0) / candidate.weight
        };
        let load = |at: usize| candidates[at].in_flight as f64 / candidates[at].weight;
        match cost(a).total_cmp(&cost(b)).then_with(|| load(a).total_cmp(&load(b))) {
            Ordering::Less => a,
            Ordering::Greater => b,
            Ordering::Equal => [a, b][fastrand::usize(..2)],
        }
    }
}

impl Policy for LatencyBased {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        // One request finds out what nobody knows yet; while it is under way the rest do not pile up behind it. A backend
        // that was tried and only blamed the request is taken to be as good as the best: else it would get every request,
        // for as long as it does nothing that can be measured.
        let unmeasured: Vec<usize> = (0..candidates.len())
            .map(|at| (at, &candidates[at]))
            .filter(|(_, candidate)| candidate.latency.is_none() && !candidate.tried && candidate.in_flight == 0)
            .map(|(at, _)| at)
            .collect();
        if !unmeasured.is_empty() {
            return Choice::new(unmeasured[fastrand::usize(..unmeasured.len())], "never measured");
        }
        if candidates.len() < 2 {
            return Choice::new(0, "the only one");
        }
        let a = fastrand::usize(..candidates.len());
        let b = (a + 1 + fastrand::usize(..candidates.len() - 1)) % candidates.len();
        let fastest = candidates.iter().filter_map(|candidate| candidate.latency).min();
        let fastest = fastest.unwrap_or_default().as_secs_f64();
        let free = Self::fast_and_idle(candidates, fastest);
        if free.contains(&a) && free.contains(&b) {
            let turn: Vec<Candidate<'_>> = free.iter().map(|at| candidates[*at]).collect();
            return Choice::new(free[self.ties.next(&turn)], "its turn: others are as fast");
        }
        let at = Self::cheaper(candidates, fastest, a, b);
        Choice::new(at, "the sooner of two")
    }

    fn forget(&self, index: usize) {
        self.ties.forget(index);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::tests::Field;

    fn millis(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    #[test]
    fn the_faster_of_two_is_picked() {
        let mut field = Field::new(&[1, 1]);
        field.latency = vec![millis(200), millis(100)];
        assert_eq!(field.count(&LatencyBased::new(), 50), [0, 50]);
    }

    #[test]
    fn weight_makes_up_for_latency() {
        let mut field = Field::new(&[3, 1]);
        field.latency = vec![millis(200), millis(100)];
        assert_eq!(field.count(&LatencyBased::new(), 50), [50, 0]);
    }

    #[test]
    fn what_is_there_now_counts_as_much_as_what_was_measured() {
        let mut field = Field::new(&[1, 1]);
        field.latency = vec![millis(100), millis(300)];
        field.in_flight = vec![4, 1];
        assert_eq!(field.count(&LatencyBased::new(), 50), [50, 0]);
        field.in_flight = vec![6, 1];
        assert_eq!(field.count(&LatencyBased::new(), 50), [0, 50]);
        // Those that wait for their first byte count in both.
        (field.in_flight, field.queue) = (vec![3, 3], vec![3, 0]);
        assert_eq!(field.count(&LatencyBased::new(), 50), [0, 50]);
    }

    #[test]
    fn no_herd_runs_to_the_fastest_between_two_measurements() {
        let (policy, mut field) = (LatencyBased::new(), Field::new(&[1, 1, 1]));
        field.latency = vec![millis(100), millis(150), millis(150)];
        for _ in 0..60 {
            let picked = field.pick(&policy);
            field.in_flight[picked] += 1;
            field.queue[picked] += 1;
        }
        assert!(field.in_flight.iter().all(|load| (12..30).contains(load)), "{field:?}");
    }

    #[test]
    fn the_slowest_of_three_gets_nothing_and_the_middle_one_something() {
        let mut field = Field::new(&[1, 1, 1]);
        field.latency = vec![millis(100), millis(200), millis(300)];
        let counts = field.count(&LatencyBased::new(), 300);
        assert!(counts[0] > counts[1] && counts[1] > 50 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn what_was_never_measured_is_tried_first_and_once_at_a_time() {
        let mut field = Field::new(&[1, 1, 1]);
        field.latency = vec![millis(100), None, millis(100)];
        assert_eq!(field.pick(&LatencyBased::new()), 1);
        field.in_flight[1] = 1;
        let counts = field.count(&LatencyBased::new(), 30);
        assert_eq!(counts[1], 0, "a request is under way there, and the others are idle");
    }

    #[test]
    fn what_was_tried_and_could_not_be_measured_gets_its_share_and_no_more() {
        let mut field = Field::new(&[1, 1]);
        field.latency = vec![millis(100), None];
        field.tried = vec![true, true];
        let counts = field.count(&LatencyBased::new(), 400);
        assert!(counts.iter().all(|count| (120..280).contains(count)), "{counts:?}");
    }

    #[test]
    fn requests_one_after_the_other_take_turns_by_weight_where_all_are_about_as_fast() {
        let mut field = Field::new(&[3, 2]);
        field.latency = vec![millis(110), millis(100)];
        assert_eq!(field.count(&LatencyBased::new(), 50), [30, 20]);
        field.latency = vec![millis(100), millis(150)];
        assert_eq!(field.count(&LatencyBased::new(), 50), [50, 0], "one is slower");
        (field.latency, field.in_flight) = (vec![millis(100), millis(100)], vec![1, 0]);
        assert_eq!(field.count(&LatencyBased::new(), 50), [0, 50], "one is busy");
    }

    #[test]
    fn the_only_candidate_is_picked() {
        let mut field = Field::new(&[1]);
        field.in_flight[0] = 3;
        assert_eq!(field.pick(&LatencyBased::new()), 0);
    }
}
