//! Durations as the configuration writes them: `1s`, `500ms`, `1h`, `1m30s`, as Go does.
//!
//! Every part's config uses it: `#[serde(with = "llmproxy_core::duration")]`, or `duration::option` for an optional one.
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     #[serde(with = "llmproxy_core::duration")]
//!     timeout: Duration,
//! }
//!
//! let config: Config = serde_json::from_str(r#"{"timeout": "1m30s"}"#)?;
//! assert_eq!(config.timeout, Duration::from_secs(90));
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Reads a duration: numbers, each with a unit (`ns`, `us`, `ms`, `s`, `m`, `h`), or a bare `0`.
///
/// # Errors
///
/// A sentence saying what is allowed.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(llmproxy_core::duration::parse("1m30s"), Ok(Duration::from_secs(90)));
/// assert!(llmproxy_core::duration::parse("90").is_err());
/// ```
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write it like 500ms, 30s, 1m30s or 2h");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        rest = &rest[unit_end..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    Ok(total)
}

/// Writes a duration so that [`parse`] reads it back, in the largest unit that it is a whole number of.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(llmproxy_core::duration::format(Duration::from_secs(90)), "90s");
/// ```
pub fn format(duration: Duration) -> String {
    match duration {
        d if d.is_zero() => "0s".into(),
        d if d.subsec_nanos() == 0 && d.as_secs() % 3600 == 0 => format!("{}h", d.as_secs() / 3600),
        d if d.subsec_nanos() == 0 && d.as_secs() % 60 == 0 => format!("{}m", d.as_secs() / 60),
        d if d.subsec_nanos() == 0 => format!("{}s", d.as_secs()),
        d if d.subsec_nanos() % 1_000_000 == 0 => format!("{}ms", d.as_millis()),
        d => format!("{}ns", d.as_nanos()),
    }
}

/// For serde's `with`: reads a string, as [`parse`] does.
///
/// # Errors
///
/// If there is no string, or it is no duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// For serde's `with`: writes a string, as [`format`](self::format()) does.
///
/// # Errors
///
/// If the serializer fails.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// The same for `Option<Duration>`; needs `#[serde(default)]` for a key that is left out.
pub mod option {
    use super::{Deserialize, Deserializer, Duration, Error, Serializer, parse};

    /// For serde's `with`: null is `None`.
    ///
    /// # Errors
    ///
    /// If there is neither null nor a string, or the string is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| parse(&text).map_err(D::Error::custom)).transpose()
    }

    /// For serde's `with`: `None` is null.
    ///
    /// # Errors
    ///
    /// If the serializer fails.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_syntax_is_read() {
        let check = |text, millis| assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        check("0", 0);
        check("500ms", 500);
        check("1s", 1000);
        check("1.5s", 1500);
        check("1m30s", 90_000);
        check("1h", 3_600_000);
        check("2h45m", 9_900_000);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "s", "-1s", "1d", "1 s", "1s2", "1e9999s", "99999999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for millis in [0, 1, 999, 1000, 90_000, 3_600_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
