//! Moments as people write them.

use jiff::{SignedDuration, Timestamp, ToSpan, civil::Date, tz::TimeZone};
use llmproxy_core::duration;

/// One that something begins with: a day is its beginning.
pub(crate) fn first(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::now(), false)
}

/// One that something ends before: a day is its end.
pub(crate) fn last(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::now(), true)
}

fn parse(text: &str, now: Timestamp, is_end: bool) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    let wrong = || {
        "write it like 2026-01-31T10:00:00Z (with Z or an offset), 2026-01-31 (a day of UTC), or how long ago: 90m, 24h, 7d"
            .to_owned()
    };
    if text.len() == "2026-01-31".len()
        && let Ok(day) = text.parse::<Date>()
    {
        let day = if is_end { day.checked_add(1.day()) } else { Ok(day) };
        let zoned = day.and_then(|day| day.to_zoned_datetime(TimeZone::UTC));
        return zoned.map(|zoned| zoned.timestamp()).map_err(|_| wrong());
    }
    now.checked_sub(ago(text).ok_or_else(wrong)?).map_err(|_| wrong())
}

/// `7d`, `2w`, and what durations of the configuration may be.
fn ago(text: &str) -> Option<SignedDuration> {
    let hours = [("d", 24), ("w", 7 * 24)].into_iter().find_map(|(unit, hours)| {
        let number: i64 = text.strip_suffix(unit)?.parse::<u32>().ok()?.into();
        Some(number * hours)
    });
    match hours {
        Some(hours) => Some(SignedDuration::from_hours(hours)),
        None => SignedDuration::try_from(duration::parse(text).ok()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_days_and_spans() {
        let now: Timestamp = "2026-02-10T12:00:00Z".parse().unwrap();
        let check = |text: &str, first: &str, last: &str| {
            assert_eq!(parse(text, now, false).map(|moment| moment.to_string()), Ok(first.to_owned()), "{text}");
            assert_eq!(parse(text, now, true).map(|moment| moment.to_string()), Ok(last.to_owned()), "{text}");
        };
        check("2026-01-31T10:00:00Z", "2026-01-31T10:00:00Z", "2026-01-31T10:00:00Z");
        check("2026-01-31T10:00:00.5+02:00", "2026-01-31T08:00:00.5Z", "2026-01-31T08:00:00.5Z");
        check("2026-01-31", "2026-01-31T00:00:00Z", "2026-02-01T00:00:00Z");
        check("24h", "2026-02-09T12:00:00Z", "2026-02-09T12:00:00Z");
        check("1h30m", "2026-02-10T10:30:00Z", "2026-02-10T10:30:00Z");
        check("7d", "2026-02-03T12:00:00Z", "2026-02-03T12:00:00Z");
        check("2w", "2026-01-27T12:00:00Z", "2026-01-27T12:00:00Z");
        check("0", "2026-02-10T12:00:00Z", "2026-02-10T12:00:00Z");
    }

    #[test]
    fn what_is_no_moment_is_told_how_to_write_one() {
        let now = Timestamp::now();
        for text in [
            "",
            "yesterday",
            "2026-01-31T10:00:00",
            "2026-13-01",
            "2026-02-30",
            "-1h",
            "7",
            "7y",
            "-7d",
            "999999999w",
            "d",
        ] {
            let told = parse(text, now, false).unwrap_err();
            assert!(told.contains("24h") && told.contains("2026-01-31"), "{text}: {told}");
        }
    }
}
