//! Rows and columns, for a terminal and for other programs.

/// A table.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    /// Each column's name, as other programs know it.
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// What stands in one place of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Somebody else's words.
    Text(String),
    /// A number, or another thing of ours that is safe anywhere.
    Number(String),
}

// === impl Sheet ===

impl Sheet {
    /// For people: columns in line, numbers to the right.
    pub(crate) fn table(&self) -> String {
        let header = self.header.iter().map(|name| Cell::Text(name.replace('_', " ").to_uppercase()));
        let rows: Vec<Vec<String>> = std::iter::once(header.collect())
            .chain(self.rows.iter().cloned())
            .map(|row| row.iter().map(Cell::shown).collect())
            .collect();
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..self.header.len()).map(|column| width(column).unwrap_or_default()).collect();
        let is_number: Vec<bool> = (0..self.header.len())
            .map(|column| self.rows.iter().any(|row| matches!(row.get(column), Some(Cell::Number(_)))))
            .collect();
        let mut text = String::new();
        for row in &rows {
            let cells = row.iter().zip(&widths).zip(&is_number).map(|((cell, width), is_number)| match is_number {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// As RFC 4180 has it: a header, lines that end in CRLF, quotes where a cell needs them. A text that a spreadsheet would
    /// take for a formula has an apostrophe in front.
    pub(crate) fn csv(&self) -> String {
        let header: Vec<Cell> = self.header.iter().map(|name| Cell::Text(name.clone())).collect();
        let mut text = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let cells: Vec<String> = row.iter().map(Cell::csv).collect();
            text.push_str(&cells.join(","));
            text.push_str("\r\n");
        }
        text
    }
}

// === impl Cell ===

impl Cell {
    fn shown(&self) -> String {
        match self {
            Self::Text(text) if text.is_empty() => "-".to_owned(),
            Self::Text(text) => printable(text),
            Self::Number(text) => text.clone(),
        }
    }

    fn csv(&self) -> String {
        let text = match self {
            Self::Text(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{text}"),
            Self::Text(text) | Self::Number(text) => text.clone(),
        };
        if text.contains(['"', ',', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    }
}

/// Without what would move a terminal's cursor: clients name models as they like.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(texts: &[&str]) -> Sheet {
        let row =
            |(index, text): (usize, &&str)| vec![Cell::Text((*text).into()), Cell::Number((index * 10).to_string())];
        Sheet { header: vec!["model".into(), "total_tokens".into()], rows: texts.iter().enumerate().map(row).collect() }
    }

    #[test]
    fn cells_are_quoted_and_never_formulas() {
        let check = |text: &str, expected: &str| {
            assert_eq!(sheet(&[text]).csv(), format!("model,total_tokens\r\n{expected},0\r\n"), "{text:?}");
        };
        check("plain", "plain");
        check("", "");
        check("a,b", "\"a,b\"");
        check("say \"hi\"", "\"say \"\"hi\"\"\"");
        check("two\nlines", "\"two\nlines\"");
        check("=1+1", "'=1+1");
        check("+1", "'+1");
        check("-1", "'-1");
        check("@SUM(A1)", "'@SUM(A1)");
        check("\t=1", "'\t=1");
        check("\r=1", "\"'\r=1\"");
        check("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\"");
        check("a=b", "a=b");
    }

    #[test]
    fn a_table_s_columns_are_in_line_and_its_texts_harmless() {
        let text = sheet(&["m", "", "a\u{1b}[2Jb", "ünï"]).table();
        let expected = "MODEL   TOTAL TOKENS\nm                  0\n-                 10\n\
                        a\u{fffd}[2Jb            20\nünï               30\n";
        assert_eq!(text, expected);
    }
}
