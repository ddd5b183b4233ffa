//! The figures as tables, and as plots.

use std::fmt::Write as _;

use super::figures::{Figures, Quantity};
use crate::chart::{self, Bar, COLOURS, Group, number, table};

/// Under this share of the proxy's core, it is the load that was too slow.
const BUSY: f64 = 95.0;
/// What the others are compared with.
const PEER: &str = "nginx";

/// One case of the report.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) case: String,
    pub(crate) about: &'static str,
}

/// Tables in Markdown, one for each case.
pub(crate) fn markdown(sections: &[Section], targets: &[String], figures: &Figures) -> String {
    let mut text = String::new();
    for Section { case, about } in sections {
        let quantities = figures.quantities(case);
        if quantities.is_empty() {
            continue;
        }
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(quantities.iter().map(|quantity| {
            let (name, unit) = quantity.name();
            let added = if quantity.is_over_direct() { ", added" } else { "" };
            format!("{name}{added}, {unit}")
        }));
        for target in targets {
            let cells: Vec<String> = quantities.iter().map(|of| cell(figures, case, target, *of)).collect();
            if cells.iter().any(|cell| cell != "-") {
                lines.push([vec![target.clone()], cells].concat());
            }
        }
        let _ = write!(text, "### {case}\n\n{about}\n\n{}\n", table(&lines));
    }
    text
}

/// Median, spread, and the ratio to nginx.
fn cell(figures: &Figures, case: &str, target: &str, quantity: Quantity) -> String {
    let (Some(summary), Some(added)) = (figures.summary(case, target, quantity), figures.added(case, target, quantity))
    else {
        return "-".to_owned();
    };
    if quantity == Quantity::Rate && target != "direct" {
        let busy = figures.summary(case, target, Quantity::Busy).map_or(0.0, |busy| busy.median);
        if busy < BUSY {
            return "generator-bound".to_owned();
        }
    }
    let is_direct = target == "direct";
    let off = if is_direct { 0.0 } else { summary.median - added };
    let value = summary.median - off;
    let mut text = number(value);
    if summary.most > summary.least {
        let _ = write!(text, " ({}–{})", number(summary.least - off), number(summary.most - off));
    }
    let ratio = figures.added(case, PEER, quantity).filter(|peer| *peer > 0.0);
    if let Some(peer) = ratio.filter(|_| !is_direct && target != PEER && quantity.has_ratio()) {
        let _ = write!(text, " **{:.2}×**", value / peer);
    }
    text
}

/// A bar for each target, in SVG; `None` where there is nothing to show.
pub(crate) fn plot(
    title: &str,
    figures: &Figures,
    case: &str,
    quantity: Quantity,
    targets: &[String],
) -> Option<String> {
    let bars: Vec<Bar> = targets
        .iter()
        .zip(COLOURS.iter().cycle())
        .filter(|(target, _)| *target != "direct")
        .filter_map(|(target, colour)| {
            let value = figures.added(case, target, quantity)?.max(0.0);
            Some(Bar { name: target.clone(), value, colour })
        })
        .collect();
    (bars.iter().any(|bar| bar.value > 0.0))
        .then(|| chart::bars(title, &[Group { name: String::new(), bars }], quantity.name().1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let mut figures = Figures::default();
        for (target, latency, busy) in [("direct", 10.0, 0.0), ("nginx", 30.0, 99.0), ("ours", 40.0, 80.0)] {
            figures.add("small", target, Quantity::P50, Some(latency));
            figures.add("small", target, Quantity::P50, Some(latency + 2.0));
            figures.add("small", target, Quantity::Rate, Some(1000.0));
            figures.add("small", target, Quantity::Busy, Some(busy));
        }
        figures
    }

    #[test]
    fn a_table_has_medians_spread_and_ratios_and_no_rate_of_a_slow_generator() {
        let section = Section { case: "small".to_owned(), about: "Short." };
        let targets = ["direct", "nginx", "ours"].map(str::to_owned);
        assert_eq!(
            markdown(&[section], &targets, &figures()),
            "### small\n\nShort.\n\n\
             |        | requests per second, /s | proxy's core busy, % | latency p50, added, µs     |\n\
             |--------|-------------------------|----------------------|----------------------------|\n\
             | direct | 1000                    | 0.00                 | 11.0 (10.0–12.0)           |\n\
             | nginx  | 1000                    | 99.0                 | 20.0 (19.0–21.0)           |\n\
             | ours   | generator-bound         | 80.0                 | 30.0 (29.0–31.0) **1.50×** |\n\n"
        );
    }

    #[test]
    fn a_plot_has_a_bar_for_each_but_the_mock_alone() {
        let targets = ["direct", "nginx", "ours"].map(str::to_owned);
        let svg = plot("Latency", &figures(), "small", Quantity::P50, &targets).unwrap();
        assert_eq!(svg.matches("<rect").count(), 3, "{svg}");
        assert!(svg.contains("width=\"380.0\"") && svg.contains("30.0 µs"), "{svg}");
        assert!(plot("None", &figures(), "small", Quantity::P99, &targets).is_none());
    }
}
