//! What each reporter has yet to deliver.

use std::{collections::HashSet, fmt::Write as _, process::ExitCode};

use llmproxy_usage::ReporterPlace;
use serde_json::{Value, json};

use super::{
    args::Format,
    place::Place,
    sheet::{Cell, Sheet},
};
use crate::say_text;

/// `llmproxy usage reporters`.
pub(super) async fn run(format: Format, place: &Place) -> Result<ExitCode, String> {
    let mut ledger = place.open_ledger().await?;
    let reporters = ledger.reporters().await.map_err(|error| error.to_string())?;
    if reporters.is_empty() {
        eprintln!("the ledger {} has had no reporter yet", place.ledger().display());
    }
    let usage = &place.config.usage;
    let names: HashSet<String> = usage.reporter_names().collect();
    // Without a configuration nobody knows.
    let configured = |reporter: &ReporterPlace| place.is_configured.then(|| names.contains(&reporter.name));
    match format {
        Format::Json => {
            let mut text = String::new();
            for reporter in &reporters {
                // It is written to memory.
                let _ = writeln!(text, "{}", object(reporter, configured(reporter)));
            }
            say_text(&text)
        }
        Format::Table => say_text(&sheet(&reporters, configured).table()),
        Format::Csv => say_text(&sheet(&reporters, configured).csv()),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn object(reporter: &ReporterPlace, is_configured: Option<bool>) -> Value {
    json!({
        "reporter": reporter.name,
        "waiting": reporter.waiting,
        "since": reporter.since.map(|since| since.to_string()),
        "configured": is_configured,
    })
}

fn sheet(reporters: &[ReporterPlace], configured: impl Fn(&ReporterPlace) -> Option<bool>) -> Sheet {
    let row = |reporter: &ReporterPlace| {
        let configured = match configured(reporter) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        vec![
            Cell::Text(reporter.name.clone()),
            Cell::Number(reporter.waiting.to_string()),
            Cell::Text(reporter.since.map(|since| format!("{since:.3}")).unwrap_or_default()),
            Cell::Text(configured.to_owned()),
        ]
    };
    let header = ["reporter", "waiting", "since", "configured"].map(str::to_owned).into();
    Sheet { header, rows: reporters.iter().map(row).collect() }
}
