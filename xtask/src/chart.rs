//! Numbers, tables in Markdown and bars in SVG, as the docs show them.

use std::fmt::Write as _;

/// For one after the other.
pub(crate) const COLOURS: [&str; 6] = ["#8a8f98", "#2f9e44", "#1971c2", "#e8590c", "#c2255c", "#7048e8"];

/// One bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) colour: &'static str,
}

/// Bars that are compared with each other: the longest of them is as long as there is room.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Nothing where there is one group.
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
}

/// As many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A table in Markdown; the first line is its head.
pub(crate) fn table(lines: &[Vec<String>]) -> String {
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

/// A picture in SVG.
pub(crate) fn bars(title: &str, groups: &[Group], unit: &str) -> String {
    let named = groups.iter().filter(|group| !group.name.is_empty()).count();
    let height = 50 + groups.iter().map(|group| group.bars.len() * 30).sum::<usize>() + named * 34;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"640\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    let mut y = 42;
    for Group { name, bars } in groups {
        if !name.is_empty() {
            let _ = writeln!(svg, "<text x=\"12\" y=\"{}\" font-weight=\"bold\">{}</text>", y + 22, escape(name));
            y += 34;
        }
        let longest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        for Bar { name, value, colour } in bars {
            let width = if longest > 0.0 { (value / longest * 380.0).max(1.0) } else { 1.0 };
            let _ = write!(
                svg,
                "<text x=\"132\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"142\" y=\"{y}\" width=\"{width:.1}\" height=\"22\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{} {unit}</text>\n",
                y + 16,
                escape(name),
                width + 150.0,
                y + 16,
                number(*value),
            );
            y += 30;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_its_own_longest_bar() {
        let bar = |value| Bar { name: "a & b".to_owned(), value, colour: COLOURS[0] };
        let group = |name: &str, values: &[f64]| Group {
            name: name.to_owned(),
            bars: values.iter().map(|value| bar(*value)).collect(),
        };
        let svg = bars("Two", &[group("one", &[1.0, 2.0]), group("two", &[0.0, 500.0])], "s");
        assert_eq!(svg.matches("width=\"380.0\"").count(), 2, "{svg}");
        assert!(
            svg.contains("viewBox=\"0 0 640 238\"") && svg.contains(">a &amp; b<") && svg.contains(">500 s<"),
            "{svg}"
        );
    }
}
