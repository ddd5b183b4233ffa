//! Times as the Go program has stored them: its keys, and its usage records.

use jiff::Timestamp;

/// Text that is no time in any form that Go's drivers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a time in a form that the Go program has written")]
pub struct NotATime;

/// Reads a time in one of the forms that Go's SQLite drivers write: RFC 3339, the same with a space, both without an
/// offset (then UTC), and the text of `time.String()`, `2026-01-23 10:30:00.123456789 +0800 CST m=+12.34`. Go's zero
/// time is none.
///
/// # Errors
///
/// If it is none of them.
///
/// ```
/// use llmproxy_core::go_time::parse;
///
/// let moment = parse("2026-01-23 10:30:00.5 +0800 CST m=+12.34")?;
/// assert_eq!(moment, Some("2026-01-23T02:30:00.5Z".parse()?));
/// assert_eq!(parse("0001-01-01 00:00:00 +0000 UTC")?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parse(text: &str) -> Result<Option<Timestamp>, NotATime> {
    // The reading of the monotonic clock, which says nothing outside of the process that took it.
    let text = text.split(" m=").next().unwrap_or_default();
    let mut words = text.split_whitespace();
    let first = words.next().ok_or(NotATime)?;
    let (date, time) = match first.split_once(['T', 't']) {
        Some(parts) => parts,
        None => (first, words.next().unwrap_or("00:00:00")),
    };
    // What follows the offset is the zone's name, which is not unique, and says no more than the offset.
    let offset = words.next().filter(|word| word.starts_with(['+', '-']));
    let offset = match offset {
        Some(offset) => offset,
        None if time.contains(['Z', 'z', '+', '-']) => "",
        None => "Z",
    };
    let moment = format!("{date}T{time}{offset}").parse::<Timestamp>().map_err(|_| NotATime)?;
    Ok((moment != zero()).then_some(moment))
}

/// The first moment of the year 1, which is what an unset time is in Go.
fn zero() -> Timestamp {
    Timestamp::from_second(-62_135_596_800).expect("the year 1 is within the range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(parse(text), Ok(Some(expected.parse().unwrap())), "{text}");
    }

    #[test]
    fn every_form_of_gos_drivers_is_read() {
        check("2026-01-23T10:30:00Z", "2026-01-23T10:30:00Z");
        check("2026-01-23T10:30:00.123456789+08:00", "2026-01-23T02:30:00.123456789Z");
        check("2026-01-23 10:30:00+08:00", "2026-01-23T02:30:00Z");
        check("2026-01-23 10:30:00.5Z", "2026-01-23T10:30:00.5Z");
        check("2026-01-23 10:30:00", "2026-01-23T10:30:00Z");
        check("2026-01-23T10:30:00", "2026-01-23T10:30:00Z");
        check("2026-01-23", "2026-01-23T00:00:00Z");
        check("2026-01-23 10:30:00.123456789 +0800 CST m=+12.34", "2026-01-23T02:30:00.123456789Z");
        check("2026-01-23 10:30:00 +0000 UTC", "2026-01-23T10:30:00Z");
        check("2026-01-23 10:30:00.1 -0530 -0530 m=-0.5", "2026-01-23T16:00:00.1Z");
    }

    #[test]
    fn an_unset_time_is_none() {
        assert_eq!(parse("0001-01-01 00:00:00 +0000 UTC"), Ok(None));
        assert_eq!(parse("0001-01-01T00:00:00Z"), Ok(None));
    }

    #[test]
    fn what_is_no_time_is_not_guessed_at() {
        for text in ["", "never", "2026-13-01 00:00:00", "2026-01-23 25:00:00", "1769135400", "m=+1"] {
            assert_eq!(parse(text), Err(NotATime), "{text}");
        }
    }
}
