//! How long a backend takes to its first byte: a mean that follows a rise at once and forgets it slowly, as the peak EWMA
//! of Twitter's Finagle does.

use std::time::Duration;

use tokio::time::Instant;

/// Samples that are this far apart share the mean as 1 - 1/e to 1/e; and the mean of a backend that is not asked shrinks
/// by the same factor in that time, so that one that was slow, or failed, is tried again some time. Longer than the time
/// between two long prompts, so that the mean is about the worst of them and not about the last.
const DECAY: Duration = Duration::from_secs(20);
/// What a failure counts as: longer than people wait, by so much that it outweighs that nothing is in flight there. A
/// backend that fails fast must not look fast, nor idle.
const PENALTY: Duration = Duration::from_secs(180);

/// The mean of one backend.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    mean: Option<(f64, Instant)>,
    answered: bool,
}

// === impl Latency ===

impl Latency {
    /// A first byte took `sample`.
    pub(crate) fn measured(&mut self, sample: Duration, now: Instant) {
        let sample = sample.as_secs_f64();
        let mean = self.mean.map_or(sample, |(mean, at)| {
            let kept = decay(now, at);
            // Whoever waits for the mean to find out that a backend has become slow sends it a crowd meanwhile.
            if sample > mean { sample } else { mean * kept + sample * (1.0 - kept) }
        });
        self.mean = Some((mean, now));
    }

    /// A request was answered in a way that says nothing of the time that work takes.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }

    /// Whether anything has come of a request there.
    pub(crate) fn is_tried(&self) -> bool {
        self.answered || self.mean.is_some()
    }

    /// A request failed there.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.measured(PENALTY, now);
    }

    /// A request was given up after `waited` without a byte: it would have taken at least that long.
    pub(crate) fn given_up(&mut self, waited: Duration, now: Instant) {
        if self.mean.is_none_or(|(mean, _)| waited.as_secs_f64() > mean) {
            self.measured(waited, now);
        }
    }

    /// Forgets all: the backend has come back, perhaps as another.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// What to expect now.
    pub(crate) fn estimate(&self, now: Instant) -> Option<Duration> {
        self.mean.map(|(mean, at)| Duration::try_from_secs_f64(mean * decay(now, at)).unwrap_or(PENALTY))
    }
}

fn decay(now: Instant, then: Instant) -> f64 {
    (-now.saturating_duration_since(then).as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{LatencyBased, tests::Field};

    const FAST: Duration = Duration::from_millis(100);

    fn seconds(estimate: Option<Duration>) -> f64 {
        estimate.unwrap().as_secs_f64()
    }

    #[test]
    fn the_first_sample_is_the_estimate() {
        let (mut latency, now) = (Latency::default(), Instant::now());
        assert_eq!(latency.estimate(now), None);
        latency.measured(FAST, now);
        assert!((seconds(latency.estimate(now)) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn a_rise_counts_at_once_and_is_forgotten_slowly() {
        let (mut latency, start) = (Latency::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        latency.measured(FAST, start);
        latency.measured(Duration::from_secs(10), start);
        assert!((seconds(latency.estimate(start)) - 10.0).abs() < 1e-6);
        (1..=5).for_each(|second| latency.measured(FAST, after(second)));
        assert!((7.0..9.0).contains(&seconds(latency.estimate(after(5)))), "five good ones in five seconds are few");
        (6..=120).for_each(|second| latency.measured(FAST, after(second)));
        assert!(seconds(latency.estimate(after(120))) < 0.2);
    }

    #[test]
    fn how_fast_it_forgets_is_a_matter_of_time_and_not_of_how_many_are_asked() {
        let forgotten = |each: u64| {
            let (mut latency, start) = (Latency::default(), Instant::now());
            latency.measured(Duration::from_secs(10), start);
            (1..=10_000 / each).for_each(|step| latency.measured(FAST, start + Duration::from_millis(each * step)));
            seconds(latency.estimate(start + Duration::from_secs(10)))
        };
        assert!((forgotten(10) - forgotten(1000)).abs() < 0.05);
    }

    #[test]
    fn a_backend_that_is_not_asked_is_tried_again_some_time() {
        let (mut latency, start) = (Latency::default(), Instant::now());
        latency.failed(start);
        assert!(seconds(latency.estimate(start)) > 10.0);
        assert!(seconds(latency.estimate(start + 10 * DECAY)) < 0.01);
    }

    #[test]
    fn a_client_that_gives_up_makes_a_backend_slower_and_never_faster() {
        let (mut latency, now) = (Latency::default(), Instant::now());
        latency.measured(Duration::from_secs(1), now);
        latency.given_up(Duration::from_millis(10), now);
        assert!((seconds(latency.estimate(now)) - 1.0).abs() < 1e-6);
        latency.given_up(Duration::from_secs(20), now);
        assert!(seconds(latency.estimate(now)) > 2.0);
    }

    #[test]
    fn one_that_fails_and_so_is_idle_gets_nothing_where_the_others_are_busy() {
        let (mut latency, start) = (Latency::default(), Instant::now());
        latency.failed(start);
        let mut field = Field::new(&[1, 1, 1]);
        field.latency = vec![None, Some(6 * FAST), Some(6 * FAST)];
        (field.in_flight, field.queue) = (vec![0, 25, 25], vec![0, 2, 2]);
        field.latency[0] = latency.estimate(start + Duration::from_secs(15));
        assert_eq!(field.count(&LatencyBased::new(), 200)[0], 0);
        field.latency[0] = latency.estimate(start + Duration::from_secs(120));
        assert!(field.count(&LatencyBased::new(), 200)[0] > 0, "it is tried again some time");
    }

    #[test]
    fn a_backend_that_fails_fast_gets_less_than_one_in_twenty() {
        let policy = LatencyBased::new();
        let mut latencies = [Latency::default(), Latency::default(), Latency::default()];
        let mut field = Field::new(&[1, 1, 1]);
        let mut now = Instant::now();
        let mut failed = 0;
        for _ in 0..2000 {
            for (at, latency) in latencies.iter().enumerate() {
                field.latency[at] = latency.estimate(now);
            }
            let picked = field.pick(&policy);
            if picked == 0 {
                failed += 1;
                now += Duration::from_millis(1);
                latencies[0].failed(now);
            } else {
                now += Duration::from_millis(500);
                latencies[picked].measured(FAST, now);
            }
        }
        assert!(failed * 20 < 2000, "{failed} of 2000");
    }
}
