//! What runs came to, as tables, numbers and plots.

use std::fmt::Write as _;

use super::{
    options::Options,
    run::{ORACLE_BY_CACHE, ORACLE_BY_WORK, Outcome},
};
use crate::chart::{self, Bar, COLOURS, Group, number};

/// One workload under one policy, over all seeds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(super) workload: &'static str,
    pub(super) policy: String,
    requests: usize,
    /// Seconds to the first token, over the requests of all seeds together; `None` where none has one.
    pub(super) first_p50: Option<f64>,
    pub(super) first_p99: Option<f64>,
    /// The same for each seed: what chance alone does.
    first_p99_by_seed: Vec<Option<f64>>,
    /// Tokens of answers per second.
    rate: f64,
    /// Of the tokens of prompts, the share that was in a cache.
    pub(super) hits: f64,
    /// The work of the server that worked most over the mean.
    imbalance: f64,
    /// The share of attempts that went to a server that fails, once it had ten times.
    pub(super) to_failing: Option<f64>,
    /// The share of requests that were not answered to their end.
    pub(super) errors: f64,
}

/// A column of the plots.
type Column = (&'static str, &'static str, &'static str, fn(&Row) -> Option<f64>);

const PLOTS: &[Column] = &[
    ("first-token-p50", "Time to the first token, p50", "s", |row| row.first_p50),
    ("first-token-p99", "Time to the first token, p99", "s", |row| row.first_p99),
    ("cache-hits", "Tokens of prompts found in a cache", "%", |row| Some(row.hits * 100.0)),
    ("imbalance", "Work of the busiest server over the mean", "×", |row| Some(row.imbalance)),
];

// === impl Row ===

impl Row {
    /// The times of all seeds together, and of the rest the mean over the seeds or the sum, as fits.
    pub(crate) fn of(workload: &'static str, policy: &str, outcomes: &[Outcome]) -> Self {
        let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
        let mean = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64;
        let first = sorted(outcomes.iter().flat_map(|outcome| &outcome.first));
        let failing = outcomes.iter().filter_map(|outcome| outcome.to_failing);
        let failing = failing.reduce(|(some, all), (more, of)| (some + more, all + of));
        Self {
            workload,
            policy: policy.to_owned(),
            requests: sum(|outcome| outcome.requests),
            first_p50: percentile(&first, 0.5),
            first_p99: percentile(&first, 0.99),
            first_p99_by_seed: outcomes.iter().map(|outcome| percentile(&sorted(&outcome.first), 0.99)).collect(),
            rate: mean(|outcome| share(outcome.answered as f64, outcome.took)),
            hits: share(sum(|outcome| outcome.cached) as f64, sum(|outcome| outcome.prompt) as f64),
            imbalance: mean(|outcome| imbalance(&outcome.worked)),
            to_failing: failing.map(|(some, all)| share(some as f64, all as f64)),
            errors: share(sum(|outcome| outcome.errors) as f64, sum(|outcome| outcome.requests) as f64),
        }
    }
}

/// A table for each workload.
pub(crate) fn markdown(options: &Options, rows: &[Row]) -> String {
    let mut text = String::new();
    for workload in &options.workloads {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.workload == workload.name).collect();
        let most = most_hits(&rows);
        let has_failing = rows.iter().any(|row| row.to_failing.is_some());
        let mut head =
            ["policy", "first token p50, s", "p99, s", "tokens/s", "cache hits", "of the oracles'", "imbalance"]
                .map(str::to_owned)
                .to_vec();
        if has_failing {
            head.push("to the failing".to_owned());
        }
        head.push("errors".to_owned());
        let mut lines = vec![head];
        for row in &rows {
            let seconds = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
            let mut line = vec![
                row.policy.clone(),
                seconds(row.first_p50),
                seconds(row.first_p99),
                number(row.rate),
                percent(row.hits, 1),
                if most > 0.0 { percent(row.hits / most, 1) } else { "-".to_owned() },
                number(row.imbalance),
            ];
            if has_failing {
                line.push(row.to_failing.map_or("-".to_owned(), |share| percent(share, 2)));
            }
            line.push(percent(row.errors, 2));
            lines.push(line);
        }
        let requests = rows.iter().map(|row| row.requests).max().unwrap_or_default();
        let _ = write!(text, "### {}\n\n{} {requests} requests.\n\n", workload.name, workload.about);
        let _ = writeln!(text, "{}", chart::table(&lines));
    }
    text
}

/// Everything, for whoever wants to do sums of their own.
pub(crate) fn json(options: &Options, rows: &[Row]) -> serde_json::Value {
    let rows = rows.iter().map(|row| {
        serde_json::json!({
            "workload": row.workload,
            "policy": row.policy,
            "requests": row.requests,
            "first_token_p50": row.first_p50,
            "first_token_p99": row.first_p99,
            "first_token_p99_by_seed": row.first_p99_by_seed,
            "tokens_per_second": row.rate,
            "cache_hits": row.hits,
            "imbalance": row.imbalance,
            "to_failing": row.to_failing,
            "errors": row.errors,
        })
    });
    serde_json::json!({
        "seed_set": options.seed_set,
        "seeds": options.seeds,
        "seconds": options.length(),
        "rows": rows.collect::<Vec<_>>(),
    })
}

/// Pictures, each with a group of bars for each workload.
pub(crate) fn plots(options: &Options, rows: &[Row]) -> Vec<(String, String)> {
    let plots = PLOTS.iter().map(|(file, title, unit, value)| {
        let groups = options.workloads.iter().map(|workload| {
            let rows = rows.iter().filter(|row| row.workload == workload.name);
            let bars = rows
                .zip(COLOURS.iter().cycle())
                .filter_map(|(row, colour)| Some(Bar { name: row.policy.clone(), value: value(row)?, colour }));
            Group { name: workload.name.to_owned(), bars: bars.collect() }
        });
        let groups: Vec<Group> = groups.filter(|group| group.bars.iter().any(|bar| bar.value > 0.0)).collect();
        (format!("{file}.svg"), chart::bars(title, &groups, unit))
    });
    plots.collect()
}

/// The hits of the better of the two oracles. Which one is depends: one that looks for nothing but hits asks too much of
/// some servers, whose caches then forget too soon.
pub(super) fn most_hits(rows: &[&Row]) -> f64 {
    let oracles = rows.iter().filter(|row| [ORACLE_BY_CACHE, ORACLE_BY_WORK].contains(&&*row.policy));
    oracles.map(|row| row.hits).fold(0.0, f64::max)
}

fn sorted<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().copied().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which `share` of `values`, which are sorted, are.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
fn percentile(values: &[f64], share: f64) -> Option<f64> {
    values.get((values.len() as f64 * share) as usize).copied()
}

fn imbalance(worked: &[f64]) -> f64 {
    let mean = worked.iter().sum::<f64>() / worked.len() as f64;
    share(worked.iter().copied().fold(0.0, f64::max), mean)
}

fn share(some: f64, all: f64) -> f64 {
    if all > 0.0 { some / all } else { 0.0 }
}

pub(super) fn percent(share: f64, decimals: usize) -> String {
    format!("{:.decimals$} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(first: &[f64], cached: usize, to_failing: Option<(usize, usize)>) -> Outcome {
        Outcome {
            first: first.to_vec(),
            requests: first.len() + 1,
            errors: 1,
            prompt: 1000,
            cached,
            answered: 500,
            took: 10.0,
            worked: vec![3.0, 1.0, 2.0],
            to_failing,
        }
    }

    #[test]
    fn seeds_are_put_together() {
        let row =
            Row::of("chat", "x", &[outcome(&[1.0, 4.0, 2.0], 100, Some((1, 10))), outcome(&[3.0], 300, Some((0, 10)))]);
        assert_eq!((row.first_p50, row.first_p99, row.requests), (Some(3.0), Some(4.0), 6));
        assert_eq!(row.first_p99_by_seed, [Some(4.0), Some(3.0)]);
        assert_eq!((row.rate, row.hits, row.imbalance), (50.0, 0.2, 1.5));
        assert_eq!((row.to_failing, row.errors), (Some(0.05), 2.0 / 6.0));
    }

    #[test]
    fn a_table_has_hits_as_a_share_of_the_better_oracle_s() {
        let options = Options::parse(&["--workload".to_owned(), "chat".to_owned()]).unwrap();
        let row = |policy, cached| Row::of("chat", policy, &[outcome(&[1.0, 2.0], cached, None)]);
        let rows = [row("round_robin", 200), row(ORACLE_BY_CACHE, 300), row(ORACLE_BY_WORK, 400)];
        let text = markdown(&options, &rows);
        let line = text.lines().find(|line| line.starts_with("| round_robin")).unwrap();
        let cells: Vec<&str> = line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, ["round_robin", "2.000", "2.000", "50.0", "20.0 %", "50.0 %", "1.50", "33.33 %"]);
        assert_eq!(json(&options, &rows)["rows"][0]["cache_hits"], 0.2);
        let plots = plots(&options, &rows);
        assert!(plots[2].0 == "cache-hits.svg" && plots[2].1.contains("width=\"190.0\""), "{}", plots[2].1);
    }
}
