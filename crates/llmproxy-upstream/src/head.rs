//! What a gateway does to heads.

use std::net::{IpAddr, Ipv4Addr};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use llmproxy_core::{Exchange, Target};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The head as the backend gets it. The order and the repetitions of what stays are kept.
pub(crate) fn for_backend(headers: &HeaderMap, target: &Target, exchange: &Exchange) -> HeaderMap {
    let backend = &target.backend.headers;
    let named = named_by_connection(headers);
    let ours = |name: &HeaderName| {
        // The length is the rendered body's; Host is the backend's; an expectation was met by our server.
        [HOST, CONTENT_LENGTH, EXPECT, X_REQUEST_ID, X_FORWARDED_FOR].contains(name)
            || (target.inject_usage && name == ACCEPT_ENCODING)
            || backend.contains_key(name)
    };
    let mut sent = HeaderMap::with_capacity(headers.len() + backend.len() + 4);
    for (name, value) in headers {
        if !is_hop_by_hop(name, &named) && !ours(name) {
            sent.append(name, value.clone());
        }
    }
    if takes_trailers(headers) {
        // It is meant for one connection, so it must be named as such on ours too.
        sent.insert(TE, HeaderValue::from_static("trailers"));
        sent.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if target.inject_usage {
        // A compressed stream can't lose the event that we ask for.
        sent.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let forwarded = Some(headers).filter(|_| !is_hop_by_hop(&X_FORWARDED_FOR, &named));
    if let Some(chain) = forwarded_for(forwarded, exchange) {
        sent.insert(X_FORWARDED_FOR, chain);
    }
    sent.insert(X_REQUEST_ID, exchange.id_value());
    for name in backend.keys() {
        sent.remove(name);
    }
    for (name, value) in backend {
        sent.append(name, value.clone());
    }
    sent
}

/// Takes off what the backend meant for its connection with us only.
pub(crate) fn for_client(headers: &mut HeaderMap) {
    // An answer that is chunked and has a length as well is chunked (RFC 9112, section 6.3), and the length, which may be
    // another, must not go on: the client would read that much and no more.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    // Mostly there is nothing to take off but the framing: what is not there is not looked up.
    let named = named_by_connection(headers);
    let present: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name, &named)).cloned().collect();
    for name in &present {
        headers.remove(name);
    }
}

/// RFC 9110, section 7.6.1, with the two of RFC 9110, section 11.7, that are between a client and its proxy. `Trailer` is
/// not among them: what it names follows.
const HOP_BY_HOP: [HeaderName; 8] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE];

fn is_hop_by_hop(name: &HeaderName, named_by_connection: &[&str]) -> bool {
    HOP_BY_HOP.contains(name) || named_by_connection.iter().any(|named| named.eq_ignore_ascii_case(name.as_str()))
}

fn named_by_connection(headers: &HeaderMap) -> Vec<&str> {
    tokens(headers, CONNECTION).filter(|token| !token.is_empty()).collect()
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, TE)
        .any(|token| token.split(';').next().is_some_and(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// As it is written, without the formatting machinery: it is done for every request.
fn dotted(ip: Ipv4Addr) -> String {
    let mut text = String::with_capacity(15);
    for (index, octet) in ip.octets().into_iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        for (least, divisor) in [(100, 100), (10, 10), (0, 1)] {
            if octet >= least {
                text.push(char::from(b'0' + octet / divisor % 10));
            }
        }
    }
    text
}

/// The addresses that the request has come by, the last of them appended.
fn forwarded_for(headers: Option<&HeaderMap>, exchange: &Exchange) -> Option<HeaderValue> {
    let before = headers.into_iter().flat_map(|headers| headers.get_all(X_FORWARDED_FOR)).map(HeaderValue::as_bytes);
    let mut chain: Option<Vec<u8>> = None;
    let mut add = |address: &[u8]| match &mut chain {
        None => chain = Some(address.to_vec()),
        Some(chain) => {
            chain.extend_from_slice(b", ");
            chain.extend_from_slice(address);
        }
    };
    before.for_each(&mut add);
    match exchange.client_ip().map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => add(dotted(ip).as_bytes()),
        Some(ip) => add(ip.to_string().as_bytes()),
        None => {}
    }
    HeaderValue::try_from(chain?).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llmproxy_core::Backend;

    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn sent(
        received: &[(&'static str, &'static str)],
        backend: &[(&'static str, &'static str)],
        inject: bool,
    ) -> Vec<String> {
        let mut target = Backend::new("http://b").unwrap();
        target.headers = headers(backend);
        let target = Target { backend: Arc::new(target), model: None, inject_usage: inject };
        let exchange = Exchange::new();
        exchange.set_client(Some([10, 0, 0, 1].into()), None);
        let mut map = HeaderMap::new();
        for &(name, value) in received {
            map.append(name, HeaderValue::from_static(value));
        }
        let sent = for_backend(&map, &target, &exchange);
        assert_eq!(sent["x-request-id"].to_str().unwrap(), exchange.id().hyphenated().to_string());
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        sent.iter().filter(|(name, _)| *name != X_REQUEST_ID).map(line).collect()
    }

    #[test]
    fn what_is_meant_for_one_connection_stays_there() {
        let received = [
            ("host", "proxy.example"),
            ("connection", "keep-alive, X-Hop"),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("content-length", "5"),
            ("x-request-id", "req-1"),
            ("x-kept", "a"),
        ];
        assert_eq!(sent(&received, &[], false), ["x-kept: a", "x-forwarded-for: 10.0.0.1"]);
    }

    #[test]
    fn other_headers_keep_their_order_and_repetitions() {
        let received =
            [("b", "1"), ("a", "2"), ("cookie", "x"), ("cookie", "y"), ("accept", "*/*"), ("user-agent", "u")];
        let expected =
            ["b: 1", "a: 2", "cookie: x", "cookie: y", "accept: */*", "user-agent: u", "x-forwarded-for: 10.0.0.1"];
        assert_eq!(sent(&received, &[], false), expected);
    }

    #[test]
    fn a_client_that_takes_trailers_says_so_on_the_next_connection() {
        let received = [("te", "gzip;q=0.5, Trailers"), ("connection", "TE")];
        assert_eq!(sent(&received, &[], false), ["te: trailers", "connection: te", "x-forwarded-for: 10.0.0.1"]);
    }

    #[test]
    fn addresses_are_written_as_they_are_elsewhere() {
        for ip in [[0, 0, 0, 0], [255, 255, 255, 255], [10, 100, 9, 99], [1, 20, 101, 200]].map(Ipv4Addr::from) {
            assert_eq!(dotted(ip), ip.to_string());
        }
    }

    #[test]
    fn the_chain_of_addresses_grows_by_one() {
        let received = [("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-for", "3.3.3.3")];
        assert_eq!(sent(&received, &[], false), ["x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1"]);
    }

    #[test]
    fn the_backends_headers_replace_the_clients() {
        let received = [("authorization", "Bearer client"), ("x-a", "1"), ("x-a", "2"), ("host", "proxy")];
        let backend = [("authorization", "Bearer ours"), ("x-a", "3"), ("host", "virtual.example")];
        assert_eq!(
            sent(&received, &backend, false),
            ["x-forwarded-for: 10.0.0.1", "authorization: Bearer ours", "x-a: 3", "host: virtual.example"]
        );
    }

    #[test]
    fn a_stream_that_must_lose_an_event_is_asked_for_uncompressed() {
        let received = [("accept-encoding", "gzip"), ("accept-encoding", "br")];
        assert_eq!(sent(&received, &[], true), ["accept-encoding: identity", "x-forwarded-for: 10.0.0.1"]);
        assert_eq!(sent(&received[..1], &[], false), ["accept-encoding: gzip", "x-forwarded-for: 10.0.0.1"]);
    }

    #[test]
    fn an_answer_loses_what_was_meant_for_us() {
        let mut answer = headers(&[
            ("content-type", "text/event-stream"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5, max=100"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("access-control-allow-origin", ""),
        ]);
        for_client(&mut answer);
        let names: Vec<&str> = answer.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 3);
        assert!(["content-type", "trailer", "access-control-allow-origin"].iter().all(|name| names.contains(name)));
    }
}
