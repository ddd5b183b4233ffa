//! What the type of a body says.

use http::{HeaderMap, header::CONTENT_TYPE};

/// The media type without its parameters; empty where it is no text.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or_default();
    Some(value.split_once(';').map_or(value, |(kind, _)| kind).trim())
}

/// Whether it is `expected`, in whatever case.
pub(crate) fn is_type(kind: &str, expected: &str) -> bool {
    kind.eq_ignore_ascii_case(expected)
}

/// Whether it is JSON, alone or as the syntax of something else.
pub(crate) fn is_json(kind: &str) -> bool {
    let suffix = kind.len().checked_sub("+json".len()).and_then(|at| kind.get(at..));
    is_type(kind, "application/json") || suffix.is_some_and(|suffix| is_type(suffix, "+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_many_names() {
        let check = |value: &'static str, expected| {
            let headers: HeaderMap = [(CONTENT_TYPE, http::HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(media_type(&headers).map(is_json), Some(expected), "{value}");
        };
        check("application/json", true);
        check("Application/JSON ; charset=utf-8", true);
        check("application/problem+Json", true);
        check("text/plain", false);
        check("json", false);
        check("", false);
        assert_eq!(media_type(&HeaderMap::new()), None);
    }
}
