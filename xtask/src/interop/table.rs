//! What is printed in the end.

/// One thing that a client did.
pub(crate) struct Row {
    /// Which client, and which server where that matters.
    pub(crate) client: String,
    /// What it did.
    pub(crate) did: String,
    /// What the server says that it came to.
    pub(crate) server: String,
    /// What the proxy recorded.
    pub(crate) recorded: String,
    /// Whether that is as it should be, or what is wrong.
    pub(crate) verdict: Result<(), String>,
}

/// All of it, aligned.
pub(crate) fn render(rows: &[Row]) -> String {
    let head = ["client", "did", "the server says", "the proxy recorded", ""];
    let lines: Vec<[String; 5]> = rows
        .iter()
        .map(|row| {
            let verdict = row.verdict.as_ref().map_or_else(|wrong| format!("WRONG: {wrong}"), |()| "ok".to_owned());
            [row.client.clone(), row.did.clone(), row.server.clone(), row.recorded.clone(), verdict]
        })
        .collect();
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..4).map(width).collect();
    let mut text = String::new();
    for line in std::iter::once(head.map(str::to_owned)).chain(lines) {
        for (cell, width) in line.iter().zip(&widths) {
            text += &format!("{cell:width$}  ");
        }
        text += line[4].as_str();
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_what_is_wrong_is_said() {
        let row = |did: &str, verdict| Row {
            client: "python".into(),
            did: did.into(),
            server: "3 + 4".into(),
            recorded: "3 + 5".into(),
            verdict,
        };
        assert_eq!(
            render(&[row("chat", Ok(())), row("models", Err("not the same".into()))]),
            "client  did     the server says  the proxy recorded\n\
             python  chat    3 + 4            3 + 5               ok\n\
             python  models  3 + 4            3 + 5               WRONG: not the same\n"
        );
    }
}
