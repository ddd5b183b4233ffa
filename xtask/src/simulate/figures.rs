//! The tables of docs/balancing.md: one for each figure, with a line for each workload.

use std::fmt::Write as _;

use super::{
    options::Options,
    report::{Row, most_hits, percent},
    run::{ORACLE_BY_CACHE, ORACLE_BY_WORK},
};
use crate::chart;

/// What is no more than this above the best is as good: chance does as much.
const AS_GOOD: f64 = 1.01;

/// A workload of which no oracle finds more of its prompts in a cache has nothing to be found.
const NO_HITS: f64 = 0.005;

/// A figure of one policy on one workload.
type Value = fn(&Row) -> Option<f64>;

/// All of them, as Markdown.
pub(crate) fn markdown(options: &Options, rows: &[Row]) -> String {
    let mut text = String::new();
    let mut add = |title: &str, lines: Vec<Vec<String>>| {
        if lines.len() > 1 {
            let _ = writeln!(text, "**{title}**\n\n{}", chart::table(&lines));
        }
    };
    add("Seconds to the first token, p99", times(options, rows, 2, |row| row.first_p99));
    add("Seconds to the first token, p50", times(options, rows, 3, |row| row.first_p50));
    add("Tokens of prompts that were found in a cache", hits(options, rows));
    add("A server that fails fast", failing(options, rows));
    text
}

/// The names of the columns: all but the oracle that looks for hits alone.
fn columns(options: &Options) -> impl Iterator<Item = &str> {
    options.policies.iter().map(|(name, _)| &**name).filter(|name| *name != ORACLE_BY_CACHE)
}

/// The first line, or any other: what it is about, and a cell for each column.
fn line<'a>(title: &str, cells: impl Iterator<Item = String> + 'a) -> Vec<String> {
    [title.to_owned()].into_iter().chain(cells).collect()
}

fn find<'a>(rows: &'a [Row], workload: &str, policy: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.workload == workload && row.policy == policy)
}

/// In bold what is best of all that knows no more than a proxy can.
fn times(options: &Options, rows: &[Row], decimals: usize, value: Value) -> Vec<Vec<String>> {
    let mut lines = vec![line("workload", columns(options).map(str::to_owned))];
    for workload in &options.workloads {
        let all = columns(options).map(|policy| (policy, find(rows, workload.name, policy).and_then(value)));
        let all: Vec<(&str, Option<f64>)> = all.collect();
        let of_policies = all.iter().filter(|(policy, _)| *policy != ORACLE_BY_WORK);
        let best = of_policies.filter_map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        let cells = all.iter().map(|(policy, seconds)| {
            let Some(seconds) = seconds else { return "-".to_owned() };
            let decimals = if *seconds < 100.0 { decimals } else { 0 };
            let bold = if *policy != ORACLE_BY_WORK && *seconds <= best * AS_GOOD { "**" } else { "" };
            format!("{bold}{seconds:.decimals$}{bold}")
        });
        lines.push(line(&format!("`{}`", workload.name), cells));
    }
    lines
}

/// Of those workloads whose prompts have something in common; the last column is the better oracle's, whichever that is.
fn hits(options: &Options, rows: &[Row]) -> Vec<Vec<String>> {
    let policies = || columns(options).filter(|policy| *policy != ORACLE_BY_WORK);
    let mut lines = vec![line("workload", policies().chain(["the better oracle"]).map(str::to_owned))];
    for workload in &options.workloads {
        let most = most_hits(&rows.iter().filter(|row| row.workload == workload.name).collect::<Vec<_>>());
        if most < NO_HITS {
            continue;
        }
        let shares = policies().map(|policy| find(rows, workload.name, policy).map(|row| row.hits)).chain([Some(most)]);
        let cells = shares.map(|share| share.map_or("-".to_owned(), |share| percent(share, 1)));
        lines.push(line(&format!("`{}`", workload.name), cells));
    }
    lines
}

/// Of those workloads that have a server that fails.
fn failing(options: &Options, rows: &[Row]) -> Vec<Vec<String>> {
    let figures: [(&str, Value); 2] = [("to the failing", |row| row.to_failing), ("errors", |row| Some(row.errors))];
    let mut lines = vec![line("workload", columns(options).map(str::to_owned))];
    for workload in &options.workloads {
        let has_one = rows.iter().any(|row| row.workload == workload.name && row.to_failing.is_some());
        for (what, value) in figures.iter().filter(|_| has_one) {
            let shares = columns(options).map(|policy| find(rows, workload.name, policy).and_then(value));
            let cells = shares.map(|share| share.map_or("-".to_owned(), |share| percent(share, 2)));
            lines.push(line(&format!("`{}`, {what}", workload.name), cells));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::run::Outcome;

    #[test]
    fn each_workload_is_a_line_and_the_best_policy_is_bold() {
        let options = ["--workload", "chat", "--policy", "random", "--policy", "session"].map(str::to_owned);
        let options = Options::parse(&options).unwrap();
        let row = |policy, first, cached| {
            let (prompt, answered, took) = (1000, 500, 10.0);
            let first = vec![first];
            let worked = vec![1.0];
            let to_failing = Some((1, 8));
            let outcome = Outcome { first, requests: 8, errors: 1, prompt, cached, answered, took, worked, to_failing };
            Row::of("chat", policy, &[outcome])
        };
        let rows = [
            row("random", 200.0, 100),
            row("session", 2.0, 300),
            row(ORACLE_BY_CACHE, 3.0, 400),
            row(ORACLE_BY_WORK, 1.0, 200),
        ];
        let text = markdown(&options, &rows);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("| `chat`"))
            .map(|line| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[0], ["`chat`", "200", "**2.00**", "1.00"]);
        assert_eq!(lines[2], ["`chat`", "10.0 %", "30.0 %", "40.0 %"]);
        assert_eq!(lines[3], ["`chat`, to the failing", "12.50 %", "12.50 %", "12.50 %"]);
        assert_eq!(lines.len(), 5);
    }
}
