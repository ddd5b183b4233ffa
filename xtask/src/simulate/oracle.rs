//! What nobody can be: a policy that sees into every server. It is what the others are measured by.

use std::{cmp::Reverse, sync::Arc};

use llmproxy_balancer::{Candidate, Choice, Policy, Work};

use super::{process::Process, server::Job};

tokio::task_local! {
    /// What is asked for, while a server for it is picked.
    pub(crate) static ASKED: Job;
}

/// What a request that is in flight counts as, in tokens of prompt: next to nothing, so that it decides among equals.
const IN_FLIGHT: usize = 16;

/// Sees every cache and every line. Of servers that fail it knows, too.
#[derive(Debug)]
pub(crate) struct Oracle {
    processes: Vec<Arc<Process>>,
    by: By,
}

/// What an oracle wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// As much of this prompt in the cache as there is anywhere, whatever the line; among equals the fewest in flight.
    Cache,
    /// The fewest tokens to be computed until this request's first: those of the line and what is not cached of its own.
    Work,
}

// === impl Oracle ===

impl Oracle {
    pub(crate) fn new(processes: Vec<Arc<Process>>, by: By) -> Self {
        Self { processes, by }
    }
}

impl Policy for Oracle {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        let worth = |at: &usize| {
            let Candidate { index, in_flight, .. } = candidates[*at];
            let process = &self.processes[index];
            let (prompt, cached) = ASKED.try_with(|job| (job.prompt, process.cached(job))).unwrap_or_default();
            let worth = match self.by {
                By::Cache => (Reverse(prompt - cached), Reverse(in_flight)),
                By::Work => (Reverse(prompt - cached + process.backlog() + IN_FLIGHT * in_flight), Reverse(0)),
            };
            (process.is_sound(), worth, Reverse(*at))
        };
        Choice::new((0..candidates.len()).max_by_key(worth).unwrap_or(0), "it knows")
    }
}

#[cfg(test)]
mod tests {
    use llmproxy_core::Backend;

    use super::*;
    use crate::simulate::{server::Spec, workload::Nature};

    const SPEC: Spec = Spec { prefill: 1000.0, weights: 0.1, context: 0.0, budget: 500, batch: 8, blocks: 1000 };

    fn job(ticket: u64, family: u64, prompt: usize) -> Job {
        let hashes = (0..(prompt / 16) as u64).map(|at| family * 1_000_000 + at).collect();
        Job { ticket, hashes, prompt, answer: 1 }
    }

    /// Which of these is picked for `job`, where this many are in flight at each.
    fn pick(processes: &[Arc<Process>], by: By, in_flight: &[usize], job: Job) -> usize {
        let backend = Arc::new(Backend::new("http://a").unwrap());
        let candidates: Vec<Candidate<'_>> = in_flight
            .iter()
            .enumerate()
            .map(|(index, in_flight)| Candidate { in_flight: *in_flight, ..Candidate::new(&backend, index) })
            .collect();
        ASKED.sync_scope(job, || Oracle::new(processes.to_vec(), by).pick(&Work::default(), &candidates).at)
    }

    /// Three servers, of which the second has computed a prompt of family 1 and the third the half of it.
    async fn warm() -> Vec<Arc<Process>> {
        let processes: Vec<_> = (0..3).map(|_| Process::new(Nature::Sound, SPEC)).collect();
        for process in &processes {
            tokio::spawn(process.clone().work());
        }
        for (at, prompt) in [(1, 400), (2, 200)] {
            let answer = processes[at].answer(job(1, 1, prompt)).await.unwrap();
            http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
        }
        processes
    }

    #[tokio::test(start_paused = true)]
    async fn it_knows_where_the_longest_prefix_is_and_among_equals_who_is_idle() {
        let processes = warm().await;
        for by in [By::Cache, By::Work] {
            assert_eq!(pick(&processes, by, &[0, 5, 0], job(2, 1, 400)), 1);
            assert_eq!(pick(&processes, by, &[2, 1, 3], job(2, 9, 400)), 1, "nobody has it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_outweighs_a_cache_where_work_is_what_counts() {
        let processes = warm().await;
        let _waiting = processes[1].answer(job(3, 7, 1000)).await.unwrap();
        assert_eq!(pick(&processes, By::Cache, &[0, 1, 0], job(2, 1, 400)), 1);
        assert_eq!(pick(&processes, By::Work, &[0, 1, 0], job(2, 1, 400)), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_ask_who_fails() {
        let breaks = Nature::Failing { status: 500, from: 0.0 };
        let processes = [breaks, Nature::Sound].map(|nature| Process::new(nature, SPEC));
        assert_eq!(pick(&processes, By::Cache, &[0, 9], job(1, 1, 100)), 0);
        processes[0].clone().fate(std::time::Duration::from_secs(1)).await;
        assert_eq!(pick(&processes, By::Cache, &[0, 9], job(1, 1, 100)), 1);
        assert_eq!(pick(&processes, By::Work, &[0, 9], job(1, 1, 100)), 1);
    }
}
