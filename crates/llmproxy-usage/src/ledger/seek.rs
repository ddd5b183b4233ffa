//! Finding things in the ledger: by time, by reporter.

use jiff::Timestamp;

use super::{LedgerError, LedgerReader};
use crate::{Query, Total, Totals};

/// How far a clock may have been set back, in milliseconds, without a record being missed.
const SLACK: i64 = 3_600_000;
/// Records that are read at a time.
const PAGE: usize = 500;

/// How far a reporter is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReporterPlace {
    /// Its name.
    pub name: String,
    /// The number of the last record that it has dealt with.
    pub seq: i64,
    /// Records after that, those that its filter leaves out included.
    pub waiting: u64,
    /// When the first of those was written.
    pub since: Option<Timestamp>,
}

// === impl LedgerReader ===

impl LedgerReader {
    /// A number after which there are all records of requests that arrived at `moment` or later, and few others. Found by
    /// when records were written, in a few steps, whatever the size of the file; after a clock that was set back by more
    /// than an hour there may be many others.
    ///
    /// # Errors
    ///
    /// Where the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn before(&mut self, moment: Timestamp) -> Result<i64, LedgerError> {
        let wanted = moment.as_millisecond().saturating_sub(SLACK);
        let (mut low, mut high) = (0, self.last().await?);
        // A record that was written before those in front of it says that the clock is not to be trusted from there on.
        let mut floor = match self.next(0).await? {
            Some((_, written)) => written,
            None => return Ok(0),
        };
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next(middle).await? {
                Some((seq, written)) if written < wanted && written.saturating_add(SLACK) >= floor => {
                    (low, floor) = (seq, floor.max(written));
                }
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// When the oldest record that is kept was written; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Where the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn since(&mut self) -> Result<Option<Timestamp>, LedgerError> {
        Ok(self.next(0).await?.map(|(_, written)| moment(written)))
    }

    /// Every reporter that the ledger knows, those that are no longer configured included, by their names.
    ///
    /// # Errors
    ///
    /// Where the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn reporters(&mut self) -> Result<Vec<ReporterPlace>, LedgerError> {
        let sql = "SELECT name, seq, (SELECT count(*) FROM records WHERE records.seq > reporters.seq),
                       (SELECT written FROM records WHERE records.seq > reporters.seq ORDER BY records.seq LIMIT 1)
                   FROM reporters ORDER BY name";
        let rows: Vec<(String, i64, i64, Option<i64>)> =
            sqlx::query_as(sql).fetch_all(&mut self.connection).await.map_err(|source| self.failed(source))?;
        let place = |(name, seq, waiting, since): (_, _, i64, Option<i64>)| ReporterPlace {
            name,
            seq,
            waiting: waiting.unsigned_abs(),
            since: since.map(moment),
        };
        Ok(rows.into_iter().map(place).collect())
    }

    /// What `query` asks for, of the records that are kept, in the order of the groups' names.
    ///
    /// # Errors
    ///
    /// Where the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn totals(&mut self, query: &Query) -> Result<Vec<Total>, LedgerError> {
        let mut totals = Totals::new(query.clone());
        // Records that are written meanwhile would keep it busy for ever.
        let last = self.last().await?;
        let mut seen = match query.from {
            Some(from) => self.before(from).await?,
            None => 0,
        };
        // To the end: a record is written when its exchange is over, which may be long after it began.
        while seen < last {
            let page = self.after(seen, PAGE, false).await?;
            if page.up_to == seen {
                break;
            }
            for (_, entry) in &page.entries {
                totals.add(&entry.record);
            }
            seen = page.up_to;
        }
        Ok(totals.finish())
    }

    /// The record after number `seq`: its own number, and when it was written.
    async fn next(&mut self, seq: i64) -> Result<Option<(i64, i64)>, LedgerError> {
        let sql = "SELECT seq, written FROM records WHERE seq > ? ORDER BY seq LIMIT 1";
        let next = sqlx::query_as(sql).bind(seq).fetch_optional(&mut self.connection).await;
        next.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: sqlx::Error) -> LedgerError {
        LedgerError::Database { path: self.path.clone(), source }
    }
}

fn moment(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use llmproxy_core::{Endpoint, UsageRecord};

    use super::*;
    use crate::{Group, ledger::scratch, scratch::Folder};

    const MINUTE: i64 = 60_000;
    /// When the first is written.
    const START: i64 = 1_790_000_000_000;

    /// A ledger whose records are written at these moments, with numbers from `first` on.
    async fn ledger(folder: &Folder, first: i64, written: &[i64]) -> LedgerReader {
        let record = |(seq, written): (i64, &i64)| {
            let model = Some(format!("m{}", seq % 3).into());
            let timestamp = moment(*written);
            (seq, *written, UsageRecord { timestamp, model, ..UsageRecord::new(Endpoint::of("/v1/completions")) })
        };
        let last = first + i64::try_from(written.len()).unwrap() - 1;
        let records = (first..).zip(written).map(record);
        scratch::ledger(&folder.join("usage.db"), records, &[("a", first + 9), ("b", last)]).await
    }

    #[tokio::test]
    async fn a_moment_is_found_without_a_record_before_it_being_missed() {
        let folder = Folder::new();
        let written: Vec<i64> = (0..10_000).map(|minute| START + minute * MINUTE).collect();
        let mut reader = ledger(&folder, 500, &written).await;
        for minute in [0, 1, 61, 5000, 9_999, 20_000] {
            let from = reader.before(moment(START + minute * MINUTE)).await.unwrap();
            // An hour earlier than that.
            let expected = (minute - 60).clamp(0, 10_000);
            assert_eq!(from.max(499), 499 + expected, "{minute}");
        }
        assert_eq!(reader.before(Timestamp::MIN).await.unwrap(), 0);
        assert_eq!(reader.since().await.unwrap(), Some(moment(START)));
    }

    #[tokio::test]
    async fn clocks_that_jump_cost_time_and_no_record() {
        let hour = 60 * MINUTE;
        // An hour back; to 1970 and forward again; years ahead for a while.
        for (at, length, jump) in
            [(300, 700, -hour), (400, 200, -START), (400, 200, 1_000_000 * MINUTE), (0, 400, -START)]
        {
            let folder = Folder::new();
            let written: Vec<i64> = (0..1000)
                .map(|minute| START + minute * MINUTE + if (at..at + length).contains(&minute) { jump } else { 0 })
                .collect();
            let mut reader = ledger(&folder, 1, &written).await;
            for wanted in (0..1000).step_by(7) {
                let from = reader.before(moment(START + wanted * MINUTE)).await.unwrap();
                let first = written.iter().position(|written| *written >= START + wanted * MINUTE);
                let first = first.map_or(i64::MAX, |index| i64::try_from(index).unwrap() + 1);
                assert!(from < first, "jump {jump}: {from} for minute {wanted}, and {first} is later than that");
            }
        }
    }

    #[tokio::test]
    async fn totals_and_places() {
        let folder = Folder::new();
        let written: Vec<i64> = (0..1200).map(|minute| START + minute * MINUTE).collect();
        let mut reader = ledger(&folder, 1, &written).await;
        let query = Query { from: Some(moment(START + 600 * MINUTE)), by: Group::Model, ..Query::default() };
        let totals = reader.totals(&query).await.unwrap();
        let told: Vec<_> = totals.iter().map(|total| (&*total.group, total.requests)).collect();
        assert_eq!(told, [("m0", 200), ("m1", 200), ("m2", 200)]);
        let to = Query { to: query.from, from: None, ..query };
        assert_eq!(reader.totals(&to).await.unwrap().iter().map(|total| total.requests).sum::<u64>(), 600);

        let places = reader.reporters().await.unwrap();
        let told: Vec<_> = places.iter().map(|place| (&*place.name, place.seq, place.waiting, place.since)).collect();
        assert_eq!(told, [("a", 10, 1190, Some(moment(START + 10 * MINUTE))), ("b", 1200, 0, None)]);
    }
}
