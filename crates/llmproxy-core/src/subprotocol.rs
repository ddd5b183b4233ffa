//! A key among a WebSocket's subprotocols (RFC 6455, section 11.3.4): the one place where a page can put it, since browsers
//! let it set no header of a handshake. OpenAI's libraries do so.

use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};

const PREFIX: &[u8] = b"openai-insecure-api-key.";

/// The key, where there is one.
pub fn key(headers: &HeaderMap) -> Option<&[u8]> {
    offered(headers).find_map(|protocol| protocol.strip_prefix(PREFIX))
}

/// Takes each key off, and the header with it where nothing else is in it.
///
/// ```
/// use http::{HeaderMap, header::SEC_WEBSOCKET_PROTOCOL};
/// use llmproxy_core::subprotocol;
///
/// let mut headers = HeaderMap::new();
/// headers.insert(SEC_WEBSOCKET_PROTOCOL, "realtime, openai-insecure-api-key.sk-1".parse()?);
/// assert_eq!(subprotocol::key(&headers), Some(&b"sk-1"[..]));
/// subprotocol::remove_key(&mut headers);
/// assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL], "realtime");
/// # Ok::<(), llmproxy_core::BoxError>(())
/// ```
pub fn remove_key(headers: &mut HeaderMap) {
    // Whatever stands before it: servers differ in what they trim.
    let has_key = |protocol: &[u8]| protocol.windows(PREFIX.len()).any(|part| part.eq_ignore_ascii_case(PREFIX));
    if !offered(headers).any(has_key) {
        return;
    }
    let others: Vec<&[u8]> = offered(headers).filter(|protocol| !has_key(protocol)).collect();
    match HeaderValue::from_bytes(&others.join(&b", "[..])) {
        Ok(value) if !value.is_empty() => drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, value)),
        _ => drop(headers.remove(SEC_WEBSOCKET_PROTOCOL)),
    }
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_and_does_not_travel_further() {
        let check = |values: &[&'static str], found: Option<&str>, left: Option<&str>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
            }
            assert_eq!(key(&headers), found.map(str::as_bytes), "{values:?}");
            remove_key(&mut headers);
            let value = headers.get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().expect("text"));
            assert_eq!((value, key(&headers)), (left, None), "{values:?}");
        };
        check(
            &["realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"],
            Some("sk-1"),
            Some("realtime, openai-beta.realtime-v1"),
        );
        check(&["realtime", "openai-insecure-api-key.sk-1"], Some("sk-1"), Some("realtime"));
        check(&["openai-insecure-api-key.sk-1,openai-insecure-api-key.sk-2"], Some("sk-1"), None);
        check(&["realtime, Openai-Insecure-API-Key.sk-1"], None, Some("realtime"));
        check(&["realtime"], None, Some("realtime"));
        check(&[], None, None);
    }

    #[test]
    fn bytes_that_are_no_text_hide_no_key() {
        let mut headers = HeaderMap::new();
        for value in [&b"realtime, openai-insecure-api-key.\xff"[..], b"\xa0openai-insecure-api-key.sk-1"] {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_bytes(value).expect("a value"));
        }
        assert_eq!(key(&headers), Some(&b"\xff"[..]));
        remove_key(&mut headers);
        assert_eq!(headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect::<Vec<_>>(), ["realtime"]);
    }
}
