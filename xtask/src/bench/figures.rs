//! What was measured: one number for each round, target, case and quantity.

use std::collections::BTreeMap;

/// A quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    Rate,
    Busy,
    CpuRequest,
    CpuChunk,
    CpuMegabyte,
    P50,
    P99,
    FirstP50,
    FirstP99,
    DelayP50,
    DelayP99,
    Throughput,
    Growth,
    LeaveP50,
    LeaveP99,
    Idle,
    PerStream,
    After,
}

/// Of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// All numbers, by case, target and quantity.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<(String, String, Quantity), Vec<f64>>);

// === impl Quantity ===

impl Quantity {
    /// What it is called, and its unit.
    pub(crate) fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Rate => ("requests per second", "/s"),
            Self::Busy => ("proxy's core busy", "%"),
            Self::CpuRequest => ("CPU per request", "µs"),
            Self::CpuChunk => ("CPU per chunk", "µs"),
            Self::CpuMegabyte => ("CPU per MB", "µs"),
            Self::P50 => ("latency p50", "µs"),
            Self::P99 => ("latency p99", "µs"),
            Self::FirstP50 => ("first token p50", "µs"),
            Self::FirstP99 => ("first token p99", "µs"),
            Self::DelayP50 => ("chunk delay p50", "µs"),
            Self::DelayP99 => ("chunk delay p99", "µs"),
            Self::Throughput => ("throughput", "MB/s"),
            Self::Growth => ("memory it adds", "KiB"),
            Self::LeaveP50 => ("leaving seen p50", "µs"),
            Self::LeaveP99 => ("leaving seen p99", "µs"),
            Self::Idle => ("memory idle", "KiB"),
            Self::PerStream => ("memory per stream", "KiB"),
            Self::After => ("memory after 10 s", "KiB"),
        }
    }

    /// Whether what the mock alone takes belongs to it, and is taken off.
    pub(crate) fn is_over_direct(self) -> bool {
        use Quantity::{DelayP50, DelayP99, FirstP50, FirstP99, P50, P99};
        matches!(self, P50 | P99 | FirstP50 | FirstP99 | DelayP50 | DelayP99)
    }

    /// Whether it is compared with nginx.
    pub(crate) fn has_ratio(self) -> bool {
        // How much room a proxy makes at its start is its own affair, and set by its file.
        !matches!(self, Self::Busy | Self::Idle)
    }
}

// === impl Figures ===

impl Figures {
    /// Adds one round's number, where there is one.
    pub(crate) fn add(&mut self, case: &str, target: &str, quantity: Quantity, value: Option<f64>) {
        let Some(value) = value else { return };
        self.0.entry((case.to_owned(), target.to_owned(), quantity)).or_default().push(value);
    }

    pub(crate) fn summary(&self, case: &str, target: &str, quantity: Quantity) -> Option<Summary> {
        let values = self.0.get(&(case.to_owned(), target.to_owned(), quantity))?;
        let mut values = values.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Summary { median, least: values[0], most: values[values.len() - 1] })
    }

    /// The median, less that of the mock alone where that is part of it.
    pub(crate) fn added(&self, case: &str, target: &str, quantity: Quantity) -> Option<f64> {
        let median = self.summary(case, target, quantity)?.median;
        if !quantity.is_over_direct() {
            return Some(median);
        }
        Some(median - self.summary(case, "direct", quantity)?.median)
    }

    pub(crate) fn quantities(&self, case: &str) -> Vec<Quantity> {
        let mut all: Vec<_> = self.0.keys().filter(|(of, ..)| of == case).map(|(.., quantity)| *quantity).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Every number, for whoever wants to do sums of their own.
    pub(crate) fn json(&self) -> serde_json::Value {
        let rows = self.0.iter().map(|((case, target, quantity), values)| {
            let (name, unit) = quantity.name();
            serde_json::json!({"case": case, "target": target, "quantity": name, "unit": unit, "rounds": values})
        });
        rows.collect()
    }
}

/// The value below which `share` of `values` are, in microseconds where they are in nanoseconds; `None` where they are too
/// few for one of them to be above it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
pub(crate) fn percentile(values: &mut [u64], share: f64) -> Option<f64> {
    let at = (values.len() as f64 * share) as usize;
    if at + 1 >= values.len() {
        return None;
    }
    let (_, value, _) = values.select_nth_unstable(at);
    Some(*value as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_summed_up_by_their_median() {
        let mut figures = Figures::default();
        for (target, values) in [("direct", [10.0, 30.0, 20.0]), ("nginx", [50.0, 40.0, 90.0])] {
            for value in values {
                figures.add("case", target, Quantity::P50, Some(value));
            }
        }
        let summary = figures.summary("case", "nginx", Quantity::P50).unwrap();
        assert_eq!(summary, Summary { median: 50.0, least: 40.0, most: 90.0 });
        assert_eq!(figures.added("case", "nginx", Quantity::P50), Some(30.0));
        assert_eq!(figures.quantities("case"), [Quantity::P50]);
        assert_eq!(figures.summary("case", "nginx", Quantity::P99), None);
    }

    #[test]
    fn a_percentile_is_a_value_that_occurred() {
        let mut values: Vec<u64> = (1..=200).map(|value| value * 1000).rev().collect();
        assert_eq!(percentile(&mut values, 0.5), Some(101.0));
        assert_eq!(percentile(&mut values, 0.99), Some(199.0));
        assert_eq!(percentile(&mut values[..50], 0.99), None, "that would be the longest of few");
    }
}
