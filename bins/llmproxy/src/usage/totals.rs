//! What records come to.

use std::{collections::BTreeSet, fmt::Write as _, process::ExitCode};

use jiff::Timestamp;
use llmproxy_core::Cost;
use llmproxy_usage::{BuiltinError, BuiltinStore, Query, Total};
use serde_json::{Map, Value, json};

use super::{
    args::{By, Format, StoreKind, UsageArgs},
    place::Place,
    sheet::{Cell, Sheet},
};
use crate::{say_text, usage::USAGE_MISTAKE};

/// `llmproxy usage`, without more.
pub(super) async fn run(args: UsageArgs, place: &Place) -> Result<ExitCode, String> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        eprintln!("llmproxy: --from is {from}, and --to is not later: {to}; nothing can be between them");
        return Ok(ExitCode::from(USAGE_MISTAKE));
    }
    let (by, format) = (args.by, args.format.unwrap_or(Format::Table));
    let query = args.only.query(args.from, args.to, by);
    let store = args.store.unwrap_or(if place.has_builtin() { StoreKind::Builtin } else { StoreKind::Ledger });
    let (totals, source, since, covered) = match store {
        StoreKind::Ledger => {
            let mut ledger = place.open_ledger().await?;
            let totals = ledger.totals(&query).await.map_err(|error| error.to_string())?;
            let since = ledger.since().await.map_err(|error| error.to_string())?;
            (totals, format!("the ledger {}", place.ledger().display()), since, query.clone())
        }
        StoreKind::Builtin => {
            let failed = |error: BuiltinError| match error {
                BuiltinError::Missing(_) | BuiltinError::NotTakenOver { .. } => {
                    format!("{error}; --store ledger asks the ledger")
                }
                error => format!("the usage in {} can't be read: {error}", place.admin_db().display()),
            };
            let store = BuiltinStore::open_to_read(place.admin_db()).await.map_err(failed)?;
            let covered = store.covered(&query).await.map_err(failed)?;
            let totals = store.totals(&covered).await.map_err(failed)?;
            let since = store.since().await.map_err(failed)?;
            if let Some((rows, from)) = store.not_taken_over().await.map_err(failed)? {
                eprintln!(
                    "{rows} rows of the Go program's {} are not in it yet; a proxy takes them over when it starts",
                    from.display()
                );
            }
            let source = format!("the builtin store {}", store.path().display());
            store.close().await;
            (totals, source, since, covered)
        }
    };
    let whole = if covered == query { "" } else { "; whole hours, since single records of then are no longer kept" };
    eprintln!("{source}: {}{whole}", period(&covered, since));
    match format {
        Format::Table => say_text(&sheet(&totals, by, true).table()),
        Format::Csv => say_text(&sheet(&totals, by, false).csv()),
        Format::Json => {
            let mut text = String::new();
            for total in &totals {
                // It is written to memory.
                let _ = writeln!(text, "{}", object(total, by));
            }
            say_text(&text)
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Which time the totals are of.
fn period(query: &Query, since: Option<Timestamp>) -> String {
    let Some(since) = since else { return "it has no records yet".to_owned() };
    let to = query.to.map_or_else(|| "now".to_owned(), |to| format!("{to:.0}"));
    match query.from {
        Some(from) if from >= since => format!("requests from {from:.0} to {to}"),
        Some(from) => format!("requests from {since:.0} to {to}; it has none that are older, back to {from:.0}"),
        None => format!("requests from {since:.0} to {to}"),
    }
}

/// A row for each total; with `sum`, one for all of them at the end.
fn sheet(totals: &[Total], by: Option<By>, sum: bool) -> Sheet {
    let currencies: BTreeSet<&str> = totals.iter().flat_map(|total| total.cost.keys()).map(String::as_str).collect();
    let mut header: Vec<String> = by.map(|by| by.name().to_owned()).into_iter().collect();
    let numbers = ["requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens"];
    header.extend(numbers.map(str::to_owned));
    header.extend(currencies.iter().map(|currency| format!("cost_{currency}")));
    let row = |name: &str, total: &Total| {
        let mut row: Vec<Cell> = by.map(|_| Cell::Text(name.to_owned())).into_iter().collect();
        row.extend(counts(total).map(|count| Cell::Number(count.to_string())));
        row.extend(currencies.iter().map(|currency| {
            let trillionths = total.cost.get(*currency).copied().unwrap_or_default();
            Cell::Number(amount(trillionths))
        }));
        row
    };
    let mut rows: Vec<Vec<Cell>> = totals.iter().map(|total| row(&total.group, total)).collect();
    let all = add(totals);
    match by {
        Some(_) if sum => rows.push(row("total", &all)),
        // Nothing comes to zero, and a script finds it so.
        None if rows.is_empty() => rows.push(row("", &all)),
        _ => {}
    }
    Sheet { header, rows }
}

fn object(total: &Total, by: Option<By>) -> Value {
    let mut object = Map::new();
    if let Some(by) = by {
        object.insert(by.name().to_owned(), total.group.clone().into());
    }
    let names = ["requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens"];
    object.extend(names.into_iter().zip(counts(total)).map(|(name, count)| (name.to_owned(), count.into())));
    let cost: Map<String, Value> =
        total.cost.keys().map(|currency| (currency.clone(), json!(total.amount(currency)))).collect();
    object.insert("cost".to_owned(), cost.into());
    object.into()
}

fn counts(total: &Total) -> [u64; 6] {
    [
        total.requests,
        total.errors,
        total.prompt_tokens,
        total.cached_tokens,
        total.completion_tokens,
        total.total_tokens(),
    ]
}

/// All of them in one.
fn add(totals: &[Total]) -> Total {
    let mut all = Total::default();
    for total in totals {
        all.requests += total.requests;
        all.errors += total.errors;
        all.prompt_tokens = all.prompt_tokens.saturating_add(total.prompt_tokens);
        all.cached_tokens = all.cached_tokens.saturating_add(total.cached_tokens);
        all.completion_tokens = all.completion_tokens.saturating_add(total.completion_tokens);
        for (currency, trillionths) in &total.cost {
            *all.cost.entry(currency.clone()).or_default() += trillionths;
        }
    }
    all
}

/// Exact, without zeros behind it.
fn amount(trillionths: u128) -> String {
    let unit = u128::from(Cost::UNIT);
    let text = format!("{}.{:012}", trillionths / unit, trillionths % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(group: &str, requests: u64, cost: &[(&str, u128)]) -> Total {
        let cost = cost.iter().map(|(currency, trillionths)| ((*currency).to_owned(), *trillionths)).collect();
        Total {
            group: group.into(),
            requests,
            errors: 1,
            prompt_tokens: 10,
            completion_tokens: 5,
            cached_tokens: 3,
            cost,
        }
    }

    #[test]
    fn money_is_exact() {
        assert_eq!(amount(0), "0");
        assert_eq!(amount(1), "0.000000000001");
        assert_eq!(amount(2_500_000_000_000), "2.5");
        assert_eq!(amount(u128::from(u64::MAX) * 1_000_000_000_000 + 1), "18446744073709551615.000000000001");
    }

    #[test]
    fn each_currency_has_a_column_and_only_a_table_has_a_sum() {
        let totals =
            [total("m", 2, &[("EUR", 1_800_000)]), total("=n", 3, &[("USD", 2_000_000_000_000), ("EUR", 200_000)])];
        let csv = sheet(&totals, Some(By::Model), false).csv();
        assert_eq!(
            csv,
            "model,requests,failed,prompt_tokens,cached_tokens,completion_tokens,total_tokens,cost_EUR,cost_USD\r\n\
             m,2,1,10,3,5,15,0.0000018,0\r\n'=n,3,1,10,3,5,15,0.0000002,2\r\n"
        );
        let table = sheet(&totals, Some(By::Model), true).table();
        let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["total", "5", "2", "20", "6", "10", "30", "0.000002", "2"]);
        let nothing = sheet(&[], None, false).csv();
        assert!(nothing.ends_with("total_tokens\r\n0,0,0,0,0,0\r\n"), "{nothing}");
    }

    #[test]
    fn json_names_the_group_by_what_it_is() {
        let expected = json!({
            "user": "", "requests": 2, "failed": 1, "prompt_tokens": 10, "cached_tokens": 3, "completion_tokens": 5,
            "total_tokens": 15, "cost": {"EUR": 0.0000018},
        });
        assert_eq!(object(&total("", 2, &[("EUR", 1_800_000)]), Some(By::User)), expected);
    }

    #[test]
    fn the_period_says_what_is_not_kept() {
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let query = Query { from: at("2026-01-01T00:00:00Z"), ..Query::default() };
        let told = period(&query, at("2026-01-05T00:00:00Z"));
        assert!(told.contains("from 2026-01-05") && told.contains("back to 2026-01-01"), "{told}");
        assert_eq!(period(&query, at("2025-01-05T00:00:00.123Z")), "requests from 2026-01-01T00:00:00Z to now");
    }
}
