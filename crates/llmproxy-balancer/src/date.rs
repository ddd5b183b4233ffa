//! Dates in headers, as far as one is to be compared with another.

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The second that `text` means, from some day on; `None` where it is no date as servers write it today, which is
/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let (_, text) = text.trim().split_once(", ")?;
    let mut words = text.split(' ');
    let (day, month, year) = (number(words.next()?, 31)?, words.next()?, number(words.next()?, 9999)?);
    let mut time = words.next()?.split(':');
    let (hour, minute) = (number(time.next()?, 23)?, number(time.next()?, 59)?);
    // One that is put in now and then.
    let second = number(time.next()?, 60)?;
    if (words.next(), words.next(), time.next()) != (Some("GMT"), None, None) {
        return None;
    }
    let month = MONTHS.iter().position(|name| *name == month)? as i64;
    // Years that begin with March end with the day that only some have.
    let year = if month < 2 { year - 1 } else { year };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let before = ((month + 10) % 12 * 153 + 2) / 5;
    let days = year * 365 + leap_days + before + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(text: &str, most: i64) -> Option<i64> {
    let is_number = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_dates_is_what_the_calendar_says() {
        for (from, to, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Sun, 06 Nov 1994 23:59:37 GMT", "Mon, 07 Nov 1994 00:00:07 GMT", 30),
            ("Thu, 31 Dec 2026 23:59:59 GMT", "Fri, 01 Jan 2027 00:00:01 GMT", 2),
            ("Wed, 28 Feb 2024 00:00:00 GMT", "Fri, 01 Mar 2024 00:00:00 GMT", 2 * 86400),
            ("Tue, 28 Feb 2023 00:00:00 GMT", "Wed, 01 Mar 2023 00:00:00 GMT", 86400),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "Tue, 01 Jan 2030 00:00:00 GMT", 1_893_456_000),
        ] {
            assert_eq!(seconds(to).unwrap() - seconds(from).unwrap(), expected, "{from} {to}");
        }
        let month = |number: usize| seconds(&format!("Mon, 01 {} 2026 00:00:00 GMT", MONTHS[number])).unwrap() / 86400;
        let lengths: Vec<i64> = (0..11).map(|number| month(number + 1) - month(number)).collect();
        assert_eq!(lengths, [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30]);
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "12",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nob 1994 08:49:37 GMT",
            "Sun, 06 Nov 999999999999 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
