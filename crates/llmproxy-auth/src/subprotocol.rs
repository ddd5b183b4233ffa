//! A key among a WebSocket's subprotocols (RFC 6455, section 11.3.4): the one place where a page can put it, since browsers
//! let it set no header of a handshake. OpenAI's libraries do so.

use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};

const PREFIX: &str = "openai-insecure-api-key.";

/// The key, where there is one.
pub(crate) fn key(headers: &HeaderMap) -> Option<&[u8]> {
    offered(headers).find_map(|protocol| protocol.strip_prefix(PREFIX)).map(str::as_bytes)
}

/// Takes the key off, and the header with it where nothing else is in it.
pub(crate) fn remove_key(headers: &mut HeaderMap) {
    if key(headers).is_none() {
        return;
    }
    let others: Vec<&str> = offered(headers).filter(|protocol| !protocol.starts_with(PREFIX)).collect();
    match HeaderValue::from_str(&others.join(", ")) {
        Ok(value) if !value.is_empty() => drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, value)),
        _ => drop(headers.remove(SEC_WEBSOCKET_PROTOCOL)),
    }
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
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
        check(&["realtime"], None, Some("realtime"));
        check(&[], None, None);
    }
}
