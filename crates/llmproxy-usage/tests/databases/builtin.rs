//! The builtin store: the usage in the admin database.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use llmproxy_core::{Cost, End, TokenUsage, UsageRecord};
use llmproxy_usage::{
    BuiltinConfig, BuiltinReport, BuiltinStore, Entry, Group, Query, Report, ReportBatch, Total, Totals, Verdict,
};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::{common::record, database::entries, sqlite::Folder};

pub(crate) fn at(moment: &str) -> Timestamp {
    moment.parse().unwrap()
}

fn record_at(moment: Timestamp, change: impl FnOnce(&mut UsageRecord)) -> UsageRecord {
    let mut record = UsageRecord { timestamp: moment, ..UsageRecord::clone(&record()) };
    change(&mut record);
    record
}

pub(crate) fn by(by: Group) -> Query {
    Query { by, ..Query::default() }
}

pub(crate) async fn everything(store: &BuiltinStore) -> Total {
    let mut totals = store.totals(&by(Group::All)).await.unwrap();
    assert!(totals.len() <= 1);
    totals.pop().unwrap_or_default()
}

pub(crate) async fn execute(path: &std::path::Path, sql: &str) {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

pub(crate) async fn count(path: &std::path::Path, sql: &str) -> i64 {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap()
}

/// Records that differ in all that is asked for, over three days.
fn many() -> Vec<UsageRecord> {
    let begin = at("2026-01-23T22:17:31.25Z");
    (0..200u32)
        .map(|index| {
            record_at(begin + SignedDuration::from_mins(i64::from(index) * 13), |record| {
                record.model = Some(format!("m{}", index % 3).into());
                record.user_id = (index % 4 != 0).then(|| format!("u{}", index % 4).into());
                record.key_name = (index % 5 != 0).then(|| format!("k{}", index % 5).into());
                record.key_fingerprint = Some(format!("f{}", index % 5).into());
                record.end = [End::Complete, End::ClientGone, End::Timeout, End::BackendFailed][index as usize % 4];
                record.usage =
                    Some(TokenUsage { prompt: u64::from(index), completion: 3, cached: Some(2), reasoning: None });
                record.cost = (index % 7 != 0).then(|| Cost {
                    trillionths: 1_000_000_000_123,
                    currency: ["EUR", "USD"][index as usize % 2].into(),
                });
            })
        })
        .collect()
}

#[tokio::test]
async fn totals_are_those_of_the_records() {
    let folder = Folder::new("totals");
    let store = BuiltinStore::open(folder.0.join("keys.db")).await.unwrap();
    let records = many();
    for batch in records.iter().collect::<Vec<_>>().chunks(50) {
        store.insert(batch).await.unwrap();
    }
    let reader = BuiltinStore::open_to_read(folder.0.join("keys.db")).await.unwrap();
    let moments = [
        None,
        Some(at("2026-01-24T00:00:00Z")),
        Some(at("2026-01-24T05:00:00Z")),
        Some(at("2026-01-24T05:20:07.5Z")),
        Some(at("2026-01-24T05:40:00Z")),
        Some(at("2026-01-25T00:00:00Z")),
    ];
    let mut asked = 0;
    for by in [Group::All, Group::Model, Group::User, Group::Key, Group::Day, Group::Hour] {
        for from in moments {
            for to in moments {
                for (model, user, key) in [
                    (None, None, None),
                    (Some("m1"), None, None),
                    (None, Some("u2"), Some("k1")),
                    (None, Some(""), None),
                    (None, None, Some("f0")),
                ] {
                    let own = |text: Option<&str>| text.map(str::to_owned);
                    let query = Query { from, to, by, model: own(model), user: own(user), key: own(key) };
                    let mut expected = Totals::new(query.clone());
                    records.iter().for_each(|record| expected.add(record));
                    assert_eq!(reader.totals(&query).await.unwrap(), expected.finish(), "{query:?}");
                    asked += 1;
                }
            }
        }
    }
    assert_eq!(asked, 6 * 36 * 5);
}

#[tokio::test]
async fn costs_beyond_64_bits_are_summed_up() {
    let folder = Folder::new("costs");
    let store = BuiltinStore::open(folder.0.join("keys.db")).await.unwrap();
    let much = u64::try_from(i64::MAX).unwrap();
    for user in ["a", "b", "c"] {
        let cost = Some(Cost { trillionths: much, currency: "EUR".into() });
        let record = record_at(at("2026-01-23T22:17:31.25Z"), |record| {
            (record.user_id, record.cost) = (Some(user.into()), cost);
        });
        store.insert(&[&record]).await.unwrap();
    }
    let total = everything(&store).await;
    assert_eq!(total.cost["EUR"], 3 * u128::from(much));
    assert!((total.amount("EUR") - 27_670_116.11).abs() < 0.01);
}

#[tokio::test]
async fn sums_of_an_hour_have_no_end_that_anybody_reaches() {
    let folder = Folder::new("far");
    let store = BuiltinStore::open(folder.0.join("keys.db")).await.unwrap();
    let records: Vec<_> = (0..5)
        .map(|_| {
            record_at(at("2026-01-23T22:17:31.25Z"), |record| {
                record.cost = Some(Cost { trillionths: u64::MAX, currency: "VND".into() });
                record.usage = Some(TokenUsage { prompt: u64::MAX, completion: 1, cached: None, reasoning: None });
            })
        })
        .collect();
    // In one transaction, and in another that adds to it.
    store.insert(&records[..3].iter().collect::<Vec<_>>()).await.unwrap();
    store.insert(&records[3..].iter().collect::<Vec<_>>()).await.unwrap();
    // By hours, by days and by rows.
    let cut = Query { from: Some(at("2026-01-23T22:17:00Z")), ..by(Group::All) };
    for query in [by(Group::Hour), by(Group::Day), cut] {
        let total = store.totals(&query).await.unwrap().pop().unwrap();
        assert_eq!(total.cost["VND"], 5 * u128::from(u64::MAX), "{query:?}");
        assert_eq!(total.completion_tokens, 5);
        assert!(total.prompt_tokens >= u64::try_from(i64::MAX).unwrap(), "{query:?}");
    }
}

#[tokio::test]
async fn sums_of_the_first_version_are_read_and_made_whole() {
    let folder = Folder::new("first_version");
    let path = folder.0.join("keys.db");
    let store = BuiltinStore::open(&path).await.unwrap();
    let cost = |trillionths| {
        move |record: &mut UsageRecord| {
            record.cost = Some(Cost { trillionths, currency: "EUR".into() });
        }
    };
    let record = record_at(at("2026-01-23T22:17:31.25Z"), cost(2_500_000_000_000));
    store.insert(&[&record]).await.unwrap();
    let other = record_at(at("2026-01-25T22:17:31.25Z"), cost(1));
    store.insert(&[&other]).await.unwrap();
    store.close().await;
    // As it was: no column of units, and a sum that had become a REAL.
    execute(
        &path,
        "UPDATE usage_records SET cost_trillionths = cost_units * 1000000000000 + cost_trillionths;
        ALTER TABLE usage_records DROP COLUMN cost_units;
        ALTER TABLE usage_hourly DROP COLUMN cost_units;
        ALTER TABLE usage_daily DROP COLUMN cost_units;
        UPDATE usage_hourly SET cost_trillionths = 2500000000000 WHERE hour < '2026-01-24';
        UPDATE usage_daily SET cost_trillionths = 2500000000000 WHERE day < '2026-01-24';
        UPDATE usage_hourly SET cost_trillionths = 9223372036854775807 + 9223372036854775807 WHERE hour > '2026-01-24';
        UPDATE usage_daily SET cost_trillionths = 9223372036854775807 + 9223372036854775807 WHERE day > '2026-01-24';
        UPDATE llmproxy_usage SET value = 1 WHERE name = 'version'",
    )
    .await;
    let reader = BuiltinStore::open_to_read(&path).await.unwrap();
    let old = reader.totals(&by(Group::Hour)).await.unwrap();
    reader.close().await;
    let store = BuiltinStore::open(&path).await.unwrap();
    for totals in [old, store.totals(&by(Group::Hour)).await.unwrap(), store.totals(&by(Group::Day)).await.unwrap()] {
        assert_eq!(totals[0].cost["EUR"], 2_500_000_000_000);
        assert!((totals[1].amount("EUR") - 18_446_744.07).abs() < 0.1, "{totals:?}");
    }
    // And goes on from there, exactly.
    let before = store.totals(&by(Group::Day)).await.unwrap();
    store.insert(&[&record_at(other.timestamp, cost(7))]).await.unwrap();
    let after = store.totals(&by(Group::Day)).await.unwrap();
    assert_eq!(after[1].cost["EUR"], before[1].cost["EUR"] + 7);
    let cut = Query { from: Some(at("2026-01-23T22:17:00Z")), to: Some(at("2026-01-24T00:00:00Z")), ..by(Group::All) };
    assert_eq!(store.totals(&cut).await.unwrap()[0].cost["EUR"], 2_500_000_000_000);
}

#[tokio::test]
async fn what_comes_again_is_counted_once() {
    let folder = Folder::new("again");
    let report = BuiltinReport::new("builtin", &BuiltinConfig::default(), folder.0.join("deep/keys.db"));
    let batch = entries(5);
    for _ in 0..2 {
        assert_eq!(report.report_batch(&batch).await, Verdict::Delivered);
    }
    let mut mixed = entries(2);
    mixed.extend_from_slice(&batch[3..]);
    mixed.push(mixed[0].clone());
    assert_eq!(report.batches().unwrap().report_batch(&mixed).await, Verdict::Delivered);
    let store = BuiltinStore::open_to_read(folder.0.join("deep/keys.db")).await.unwrap();
    assert_eq!(everything(&store).await.requests, 7);
    assert_eq!(store.totals(&by(Group::Hour)).await.unwrap()[0].group, "2026-01-23T10:00:00Z");
    assert_eq!(count(store.path(), "SELECT COUNT(*) FROM usage_records").await, 7);
}

#[tokio::test]
async fn sums_outlive_the_rows_and_are_not_added_to_twice() {
    let folder = Folder::new("retention");
    let store = BuiltinStore::open(folder.0.join("keys.db")).await.unwrap();
    let now = Timestamp::now();
    let days = |days: i64| now - SignedDuration::from_hours(24 * days);
    let records: Vec<_> = (0..2_600u32).map(|index| record_at(days(i64::from(index % 20)), |_| {})).collect();
    let records: Vec<_> = records.iter().collect();
    store.insert(&records).await.unwrap();
    // More than a piece, and some of them of the last days.
    assert_eq!(store.purge(days(2)).await.unwrap(), 17 * 130);
    assert_eq!(store.purge(days(2)).await.unwrap(), 0);
    assert_eq!(count(store.path(), "SELECT COUNT(*) FROM usage_records").await, 3 * 130);
    assert_eq!(everything(&store).await.requests, 2_600);
    // All of them again: those with rows, those whose rows have gone of late, and those from long before.
    store.insert(&records).await.unwrap();
    assert_eq!(everything(&store).await.requests, 2_600);
    // One that is late, and was not there before.
    let late = record_at(days(5), |_| {});
    for _ in 0..2 {
        store.insert(&[&late]).await.unwrap();
        store.purge(days(2)).await.unwrap();
    }
    assert_eq!(everything(&store).await.requests, 2_601);
}

#[tokio::test(start_paused = true)]
async fn retention_runs_by_itself() {
    let folder = Folder::new("hourly");
    let config = BuiltinConfig { retention_days: 30 };
    let report = BuiltinReport::new("builtin", &config, folder.0.join("keys.db"));
    let old = record_at(Timestamp::now() - SignedDuration::from_hours(24 * 31), |_| {});
    let batch = [Entry::new(Arc::new(old)), Entry::new(record_at(Timestamp::now(), |_| {}).into())];
    assert_eq!(report.report_batch(&batch).await, Verdict::Delivered);
    let path = folder.0.join("keys.db");
    let mut passed = std::time::Duration::ZERO;
    // Each look takes real time, in which the paused clock goes on.
    while count(&path, "SELECT COUNT(*) FROM usage_records").await == 2 {
        assert!(passed < std::time::Duration::from_secs(7200), "two hours later it is still there");
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        passed += std::time::Duration::from_secs(10);
    }
    assert_eq!(count(&path, "SELECT COUNT(*) FROM usage_records").await, 1);
}

#[tokio::test]
async fn an_hour_whose_rows_have_gone_is_counted_as_a_whole() {
    let folder = Folder::new("cut");
    let store = BuiltinStore::open(folder.0.join("keys.db")).await.unwrap();
    let begin = at("2026-01-23T00:00:00Z");
    let records: Vec<_> =
        (0..60 * 5).map(|minute| record_at(begin + SignedDuration::from_mins(minute), |_| {})).collect();
    store.insert(&records.iter().collect::<Vec<_>>()).await.unwrap();
    let between = |from: &str, to: &str| {
        let moment = |text: &str| Some(at(&format!("2026-01-23T{text}:00Z")));
        Query { from: moment(from), to: moment(to), ..Query::default() }
    };
    let asked = [("00:30", "01:15"), ("00:30", "04:15"), ("01:10", "01:20"), ("02:40", "04:15"), ("02:10", "02:50")];
    for (from, to) in asked {
        assert_eq!(store.covered(&between(from, to)).await.unwrap(), between(from, to));
    }
    store.purge(at("2026-01-23T02:30:00Z")).await.unwrap();
    for ((from, to), (covered_from, covered_to), requests) in [
        (asked[0], ("00:00", "02:00"), 120),
        (asked[1], ("00:00", "04:15"), 255),
        (asked[2], ("01:00", "02:00"), 60),
        // All that these are about is still there.
        (asked[3], asked[3], 95),
        (("02:30", "02:50"), ("02:30", "02:50"), 20),
        // And of this one a part.
        (asked[4], ("02:00", "03:00"), 60),
    ] {
        let query = between(from, to);
        assert_eq!(store.covered(&query).await.unwrap(), between(covered_from, covered_to), "{from} {to}");
        assert_eq!(store.totals(&query).await.unwrap()[0].requests, requests, "{from} {to}");
    }
}
