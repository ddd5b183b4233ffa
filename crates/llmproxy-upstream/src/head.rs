//! What a gateway does to heads.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Version,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        SEC_WEBSOCKET_PROTOCOL, TE, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    request::Parts,
    response,
};
use llmproxy_core::{Backend, Exchange, Target, is_spelling_of, subprotocol};

use crate::forwarded;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How the names begin by which the proxy says what it has done.
const OURS: &str = "x-llmproxy-";

/// The head as the backend gets it. The order and the repetitions of what stays are kept.
pub(crate) fn for_backend(parts: &Parts, target: &Target, exchange: &Exchange) -> HeaderMap {
    let headers = &parts.headers;
    let backend = &target.backend.headers;
    // A client's own key beside ours could be refused in its place, and ours would be blamed.
    let supplies_credentials = target.backend.supplies_credentials();
    let named = named_by_connection(headers);
    let hop = exchange.hop();
    let ours = |name: &HeaderName| {
        // The length is the rendered body's; Host is written below; an expectation was met by our server.
        [HOST, CONTENT_LENGTH, EXPECT, X_REQUEST_ID].contains(name)
            || hop.is_some_and(|hop| forwarded::is_rewritten(name, hop))
            || (target.inject_usage && name == ACCEPT_ENCODING)
            || backend.contains_key(name)
            || (supplies_credentials && Backend::CREDENTIALS.contains(name))
    };
    let mut sent = HeaderMap::with_capacity(headers.len() + backend.len() + 8);
    // What a trusted proxy has said of those before it: seldom anything.
    let mut believed = Vec::new();
    for (name, value) in headers {
        if is_hop_by_hop(name, &named) || is_disguised(name, &target.backend) {
            continue;
        }
        if !ours(name) {
            sent.append(name, value.clone());
        } else if hop.is_some_and(|hop| hop.trusted) {
            believed.push((name, value));
        }
    }
    if supplies_credentials {
        subprotocol::remove_key(&mut sent);
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
    let host = host(parts);
    if target.backend.preserve_host
        && let Some(host) = &host
    {
        sent.insert(HOST, host.clone());
    }
    if let Some(hop) = hop {
        forwarded::append(&mut sent, hop, host.as_ref(), &believed);
    }
    sent.append(VIA, via(parts.version));
    sent.insert(X_REQUEST_ID, exchange.id_value());
    for name in backend.keys() {
        sent.remove(name);
    }
    for (name, value) in backend {
        sent.append(name, value.clone());
    }
    sent
}

/// Which server the client asked for: what stands in the target overrules the header (RFC 9112, section 3.2.2), and HTTP/2
/// has it nowhere else.
fn host(parts: &Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => {
            let host = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
            HeaderValue::from_str(host).ok()
        }
        None => parts.headers.get(HOST).cloned(),
    }
}

/// RFC 9110, section 7.6.3: a gateway says on requests by which protocol it has received them. The name is one for all:
/// where the proxy stands is nobody's business.
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 llmproxy",
        Version::HTTP_2 => "2 llmproxy",
        _ => "1.1 llmproxy",
    })
}

/// What makes an answer's head one that can't go on, where hyper has taken it. Whether it may switch protocols is known by
/// whoever asked.
pub(crate) fn nonsense(head: &response::Parts, upgrades: bool) -> Option<&'static str> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !upgrades {
        // Upgrade is for one connection only and was taken off.
        return Some("it switched protocols unasked");
    }
    // Over HTTP/1.1 hyper has seen to it; over HTTP/2 nothing is framed by it, and it would go on as it is.
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).into_iter();
    if let Some(length) = lengths.next() {
        if !length.as_bytes().iter().all(u8::is_ascii_digit) || length.is_empty() {
            return Some("it gave its answer a length that is none");
        }
        if lengths.any(|other| other != length) {
            return Some("it gave its answer two lengths");
        }
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).into_iter();
    let (coding, more) = (codings.next()?, codings.next());
    if head.headers.contains_key(CONTENT_LENGTH) {
        // An attempt to have two readers see two answers (RFC 9112, section 6.3).
        return Some("it gave its answer two lengths");
    }
    // What is coded in another way would go on without the word that says so. `identity` is of an older RFC, and no coding.
    let is_known = [&b"chunked"[..], b"identity"].iter().any(|known| coding.as_bytes().eq_ignore_ascii_case(known));
    if more.is_some() || !is_known { Some("it used a transfer coding that nobody asked for") } else { None }
}

/// Takes off what the backend meant for its connection with us only, and what would be taken for our own word.
pub(crate) fn for_client(headers: &mut HeaderMap) {
    // Mostly there is nothing to take off but the framing: what is not there is not looked up.
    let named = named_by_connection(headers);
    let stays_here = |name: &&HeaderName| is_hop_by_hop(name, &named) || name.as_str().starts_with(OURS);
    let present: Vec<HeaderName> = headers.keys().filter(stays_here).cloned().collect();
    for name in &present {
        headers.remove(name);
    }
}

/// The same for what follows an answer: by then the client has been told the request's id.
pub(crate) fn trailers_for_client(trailers: &mut HeaderMap) {
    for_client(trailers);
    trailers.remove(X_REQUEST_ID);
}

/// RFC 9110, section 7.6.1, with the two of RFC 9110, section 11.7, that are between a client and its proxy. `Trailer` is
/// not among them: what it names follows.
const HOP_BY_HOP: [HeaderName; 8] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE];

fn is_hop_by_hop(name: &HeaderName, named_by_connection: &[&str]) -> bool {
    HOP_BY_HOP.contains(name) || named_by_connection.iter().any(|named| named.eq_ignore_ascii_case(name.as_str()))
}

/// Whether a header passes for one that we write or take off, to a server that does not tell `_` from `-`.
fn is_disguised(name: &HeaderName, backend: &Backend) -> bool {
    // Nearly none has one.
    if !name.as_str().as_bytes().contains(&b'_') {
        return false;
    }
    let is_other = |known: &HeaderName| known != name && is_spelling_of(name, known);
    forwarded::is_disguised(name)
        || HOP_BY_HOP.iter().chain(&[HOST, CONTENT_LENGTH, X_REQUEST_ID]).chain(backend.headers.keys()).any(is_other)
        || (backend.supplies_credentials()
            && Backend::CREDENTIALS.iter().chain(&[SEC_WEBSOCKET_PROTOCOL]).any(is_other))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llmproxy_core::Hop;

    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn all_sent(request: http::request::Builder, backend: Backend, inject: bool, trusted: bool) -> Vec<String> {
        let target = Target { backend: Arc::new(backend), model: None, inject_usage: inject };
        let exchange = Exchange::new();
        exchange.set_hop(Hop { ip: [10, 0, 0, 1].into(), tls: false, trusted });
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let sent = for_backend(&parts, &target, &exchange);
        assert_eq!(sent["x-request-id"].to_str().unwrap(), exchange.id().hyphenated().to_string());
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        sent.iter().filter(|(name, _)| *name != X_REQUEST_ID).map(line).collect()
    }

    /// What goes on of these headers, but for what says where the request came from.
    fn sent(
        received: &[(&'static str, &'static str)],
        backend: &[(&'static str, &'static str)],
        inject: bool,
    ) -> Vec<String> {
        let mut to = Backend::new("http://b").unwrap();
        to.headers = headers(backend);
        let request =
            received.iter().fold(http::Request::get("/"), |request, (name, value)| request.header(*name, *value));
        let mut lines = all_sent(request, to, inject, false);
        lines.retain(|line| !["forwarded: ", "x-forwarded-", "via: "].iter().any(|start| line.starts_with(start)));
        lines
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
        assert_eq!(sent(&received, &[], false), ["x-kept: a"]);
    }

    #[test]
    fn other_headers_keep_their_order_and_repetitions() {
        let received =
            [("b", "1"), ("a", "2"), ("cookie", "x"), ("cookie", "y"), ("accept", "*/*"), ("user-agent", "u")];
        let expected = ["b: 1", "a: 2", "cookie: x", "cookie: y", "accept: */*", "user-agent: u"];
        assert_eq!(sent(&received, &[], false), expected);
    }

    #[test]
    fn nothing_passes_for_another_header_by_an_underscore() {
        let received = [
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_for", "6.6.6.6"),
            ("x_forwarded_proto", "https"),
            ("x_real_ip", "6.6.6.6"),
            ("x_api_key_userid", "root"),
            ("x_request_id", "1"),
            ("content_length", "5"),
            ("transfer_encoding", "chunked"),
            ("x_ours", "2"),
            ("x-theirs", "3"),
            ("x_theirs", "4"),
            ("x_other", "5"),
            ("openai_beta", "6"),
        ];
        let expected = ["x-theirs: 3", "x_theirs: 4", "x_other: 5", "openai_beta: 6", "x-ours: 1"];
        assert_eq!(sent(&received, &[("x-ours", "1")], false), expected);
        // A trusted proxy writes it otherwise: it only let it pass.
        let request = http::Request::get("/").header("x_forwarded_for", "6.6.6.6").header("x_real_ip", "6.6.6.6");
        let lines = all_sent(request, Backend::new("http://b").unwrap(), false, true);
        assert!(!lines.iter().any(|line| line.contains("6.6.6.6")), "{lines:?}");
    }

    #[test]
    fn a_client_that_takes_trailers_says_so_on_the_next_connection() {
        let received = [("te", "gzip;q=0.5, Trailers"), ("connection", "TE")];
        assert_eq!(sent(&received, &[], false), ["te: trailers", "connection: te"]);
    }

    #[test]
    fn where_a_request_came_from_is_said_and_a_stranger_s_word_about_it_is_not_passed_on() {
        let request = || {
            http::Request::get("/v1/models")
                .header("host", "api.example:8000")
                .header("x-forwarded-for", "6.6.6.6")
                .header("x-forwarded-proto", "https")
                .header("x-forwarded-host", "other.example")
                .header("forwarded", "for=6.6.6.6")
                .header("via", "1.1 cache")
        };
        let backend = || Backend::new("http://b").unwrap();
        let mut expected = [
            "forwarded: for=10.0.0.1;host=\"api.example:8000\";proto=http",
            "via: 1.1 cache",
            "via: 1.1 llmproxy",
            "x-forwarded-for: 10.0.0.1",
            "x-forwarded-host: api.example:8000",
            "x-forwarded-proto: http",
        ];
        let mut lines = all_sent(request(), backend(), false, false);
        lines.sort();
        assert_eq!(lines, expected);
        // Of a proxy that is trusted it is.
        expected[0] = "forwarded: for=6.6.6.6, for=10.0.0.1;host=\"api.example:8000\";proto=http";
        expected[3] = "x-forwarded-for: 6.6.6.6, 10.0.0.1";
        expected[4] = "x-forwarded-host: other.example";
        expected[5] = "x-forwarded-proto: https";
        let mut lines = all_sent(request(), backend(), false, true);
        lines.sort();
        assert_eq!(lines, expected);
        // Unless it was meant for its connection with us.
        let hop = http::Request::get("/").header("connection", "x-forwarded-for").header("x-forwarded-for", "6.6.6.6");
        assert!(all_sent(hop, backend(), false, true).contains(&"x-forwarded-for: 10.0.0.1".into()));
    }

    #[test]
    fn the_host_is_the_backends_unless_it_takes_the_clients() {
        let check = |uri: &str, preserve: bool, ours: &[(&'static str, &'static str)], expected: Option<&str>| {
            let mut backend = Backend::new("http://b").unwrap();
            (backend.preserve_host, backend.headers) = (preserve, headers(ours));
            let sent = all_sent(http::Request::get(uri).header("host", "api.example"), backend, false, false);
            let hosts: Vec<&str> = sent.iter().filter_map(|line| line.strip_prefix("host: ")).collect();
            assert_eq!(hosts, expected.into_iter().collect::<Vec<_>>(), "{uri}");
        };
        check("/v1/models", false, &[], None);
        check("/v1/models", true, &[], Some("api.example"));
        check("http://me@other.example:81/v1/models", true, &[], Some("other.example:81"));
        check("/v1/models", true, &[("host", "virtual.example")], Some("virtual.example"));
    }

    #[test]
    fn the_backends_headers_replace_the_clients() {
        let received = [("authorization", "Bearer client"), ("x-a", "1"), ("x-a", "2"), ("host", "proxy")];
        let backend = [("authorization", "Bearer ours"), ("x-a", "3"), ("host", "virtual.example")];
        assert_eq!(sent(&received, &backend, false), ["authorization: Bearer ours", "x-a: 3", "host: virtual.example"]);
    }

    #[test]
    fn where_the_proxy_supplies_a_key_no_key_of_the_client_passes() {
        let received = [
            ("authorization", "Bearer theirs"),
            ("x-api-key", "theirs"),
            ("api-key", "theirs"),
            ("x_api_key", "theirs"),
        ];
        for (name, _) in &received[..3] {
            assert_eq!(sent(&received, &[(name, "ours")], false), [format!("{name}: ours")]);
        }
        assert_eq!(sent(&received, &[("x-a", "1")], false).len(), 5);
    }

    #[test]
    fn a_key_among_subprotocols_is_a_key_of_the_client_too() {
        let received = [
            ("sec-websocket-protocol", "realtime, openai-insecure-api-key.theirs"),
            ("sec_websocket_protocol", "openai-insecure-api-key.theirs"),
        ];
        let expected = ["sec-websocket-protocol: realtime", "authorization: Bearer ours"];
        assert_eq!(sent(&received, &[("authorization", "Bearer ours")], false), expected);
        let passed = sent(&received, &[("x-a", "1")], false);
        assert_eq!(passed[0], "sec-websocket-protocol: realtime, openai-insecure-api-key.theirs");
    }

    #[test]
    fn a_stream_that_must_lose_an_event_is_asked_for_uncompressed() {
        let received = [("accept-encoding", "gzip"), ("accept-encoding", "br")];
        assert_eq!(sent(&received, &[], true), ["accept-encoding: identity"]);
        assert_eq!(sent(&received[..1], &[], false), ["accept-encoding: gzip"]);
    }

    #[test]
    fn an_answer_whose_length_or_coding_is_in_doubt_is_none() {
        let check = |list: &[(&'static str, &'static str)], expected: Option<&str>| {
            let mut answer = http::Response::new(());
            for &(name, value) in list {
                answer.headers_mut().append(name, HeaderValue::from_static(value));
            }
            assert_eq!(nonsense(&answer.into_parts().0, false), expected, "{list:?}");
        };
        check(&[], None);
        check(&[("content-length", "5")], None);
        check(&[("content-length", "5"), ("content-length", "5")], None);
        check(&[("content-length", "5"), ("content-length", "6")], Some("it gave its answer two lengths"));
        for length in ["", "x", "-5", "5, 5"] {
            check(&[("content-length", length)], Some("it gave its answer a length that is none"));
        }
        check(&[("transfer-encoding", "Chunked")], None);
        check(&[("transfer-encoding", "identity")], None);
        check(&[("transfer-encoding", "chunked"), ("content-length", "5")], Some("it gave its answer two lengths"));
        let coding = Some("it used a transfer coding that nobody asked for");
        check(&[("transfer-encoding", "gzip, chunked")], coding);
        check(&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], coding);
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
            ("x-llmproxy-backend", "another"),
        ]);
        for_client(&mut answer);
        let names: Vec<&str> = answer.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 3);
        assert!(["content-type", "trailer", "access-control-allow-origin"].iter().all(|name| names.contains(name)));
    }
}
