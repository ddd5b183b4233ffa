//! The figures as tables, and as plots.

use std::fmt::Write as _;

use super::figures::{Figures, Quantity};

/// Under this share of the proxy's core, it is the load that was too slow.
const BUSY: f64 = 95.0;
/// What the others are compared with.
const PEER: &str = "nginx";
const COLOURS: [&str; 6] = ["#8a8f98", "#2f9e44", "#1971c2", "#e8590c", "#c2255c", "#7048e8"];

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

fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn table(lines: &[Vec<String>]) -> String {
    let columns = lines[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default().max(3))
        .collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            text.extend(widths.iter().map(|width| format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
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
    let bars: Vec<(&String, f64, &str)> = targets
        .iter()
        .zip(COLOURS.iter().cycle())
        .filter(|(target, _)| *target != "direct")
        .filter_map(|(target, colour)| Some((target, figures.added(case, target, quantity)?.max(0.0), *colour)))
        .collect();
    let longest = bars.iter().map(|(_, value, _)| *value).fold(0.0, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let unit = quantity.name().1;
    let height = 50 + bars.len() * 30;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"640\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n"
    );
    for (index, (target, value, colour)) in bars.iter().enumerate() {
        let y = 42 + index * 30;
        let width = (value / longest * 380.0).max(1.0);
        let _ = write!(
            svg,
            "<text x=\"132\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"142\" y=\"{y}\" width=\"{width:.1}\" height=\"22\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{} {unit}</text>\n",
            y + 16,
            escape(target),
            width + 150.0,
            y + 16,
            number(*value),
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
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
