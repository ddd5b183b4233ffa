//! Heads of both directions: what is meant for one connection stays there, and everything else goes on as it was.

use std::{
    cell::OnceCell,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, header::CONNECTION};
use http_body_util::BodyExt;
use llmproxy_core::{Backend, Exchange, RequestBody, Target};
use llmproxy_testkit::{Backend as Server, Seen};
use llmproxy_upstream::{Clients, Upstream};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// A server behind the part that is looked at, over a real socket: what counts is what was on the wire.
struct Rig {
    _server: Server,
    upstream: Upstream,
    backend: Arc<Backend>,
    answer: Arc<Mutex<Vec<(String, String)>>>,
    /// What the server was asked.
    seen: Arc<Mutex<Option<Seen>>>,
}

/// What no gateway may send on (RFC 9110, section 7.6.1), whatever `Connection` says.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What the gateway itself says, instead of the client or besides it.
const OURS: &[&str] = &[
    "accept",
    "accept-encoding",
    "content-length",
    "date",
    "expect",
    "forwarded",
    "host",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-llmproxy-attempts",
    "x-llmproxy-backend",
    "x-request-id",
];

const BODY: &str = r#"{"model":"a"}"#;

thread_local! {
    static RIG: OnceCell<Rig> = const { OnceCell::new() };
    static RUNTIME: &'static Runtime = Box::leak(Box::new(
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had"),
    ));
}

/// One runtime for each thread: what is waited for is done by nobody else.
pub(crate) fn runtime() -> &'static Runtime {
    RUNTIME.with(|runtime| *runtime)
}

/// The lines of `data` up to the first that is empty as the headers of a request, and those behind it as the headers of
/// its answer: neither side is told what was meant for the connection of the other, nor does it miss anything else.
///
/// ```
/// llmproxy_fuzz::heads(b"connection: x-hop\nx-hop: 1\nx-kept: 2\n\nkeep-alive: timeout=5\nx-kept: 3\n");
/// ```
///
/// # Panics
///
/// If they do.
pub fn heads(data: &[u8]) {
    let at = data.windows(2).position(|two| two == b"\n\n").unwrap_or(data.len());
    let (request, answer) = (parse(&data[..at]), parse(&data[at..]));
    // The framing of the answer is the server's own here.
    let answer: Vec<(String, String)> = pairs(&answer)
        .into_iter()
        .filter(|(name, value)| !matches!(*name, "content-length" | "transfer-encoding") && value.is_ascii())
        .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    RIG.with(|rig| {
        let rig = rig.get_or_init(|| runtime().block_on(Rig::start()));
        runtime().block_on(rig.check(&request, answer));
    });
}

// === impl Rig ===

impl Rig {
    async fn start() -> Self {
        let answer: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
        let (says, sees) = (answer.clone(), seen.clone());
        let server = Server::start(move |seen, wire| {
            *sees.lock().expect("nobody panics while holding it") = Some(seen);
            let headers = says.lock().expect("nobody panics while holding it").clone();
            async move {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
                wire.respond(200, &headers, "{}").await
            }
        })
        .await;
        let backend = Arc::new(Backend::new(&server.url()).expect("a good URL"));
        Self { _server: server, upstream: Upstream::new(Clients::new()), backend, answer, seen }
    }

    async fn check(&self, sent: &HeaderMap, answer: Vec<(String, String)>) {
        self.answer.lock().expect("nobody panics while holding it").clone_from(&answer);
        let mut request = Request::post("/v1/chat/completions").body(RequestBody::whole(BODY)).expect("a good request");
        *request.headers_mut() = sent.clone();
        let target = Target { backend: self.backend.clone(), model: None, inject_usage: false };
        request.extensions_mut().insert(target);
        Exchange::of(request.extensions_mut()).set_client(Some([10, 0, 0, 1].into()), None);
        let result = self.upstream.clone().oneshot(request).await;

        let seen = self.seen.lock().expect("nobody panics while holding it").take();
        if let Some(seen) = seen {
            assert_eq!(seen.body, BODY, "the question is another");
            let got: Vec<(&str, &[u8])> =
                seen.headers.iter().map(|(name, value)| (&**name, value.as_bytes())).collect();
            let count = |name: &str| got.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name)).count();
            assert_eq!([count("host"), count("content-length"), count("x-request-id")], [1; 3]);
            assert_eq!([count("transfer-encoding"), count("expect"), count("upgrade")], [0; 3]);
            check(&pairs(sent), &got, &named(sent));
        }
        let Ok(answered) = result else { return };
        let mut map = HeaderMap::new();
        for (name, value) in &answer {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("it was one");
            map.append(name, HeaderValue::from_str(value.trim()).expect("it was one"));
        }
        check(&pairs(&map), &pairs(answered.headers()), &named(&map));
        let body = answered.into_body().collect().await.expect("a whole answer").to_bytes();
        assert_eq!(body, "{}", "the answer is another");
    }
}

/// What was sent of each name came, in that order, unless it was for one connection.
fn check(sent: &[(&str, &[u8])], got: &[(&str, &[u8])], named: &[String]) {
    let is_hop = |name: &str| HOP_BY_HOP.contains(&name) || named.iter().any(|named| named == name);
    for (name, value) in got {
        let (name, value) = (name.to_ascii_lowercase(), *value);
        // "te: trailers" is ours to say anew.
        let anew = matches!(&*name, "te" | "connection") && (value == b"trailers" || value.eq_ignore_ascii_case(b"te"));
        let is_ours = OURS.contains(&&*name);
        assert!(!is_hop(&name) || anew || is_ours, "{name} is for one connection only");
    }
    let mut left: Vec<(String, &[u8])> =
        got.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.trim_ascii())).collect();
    for (name, value) in sent.iter().filter(|(name, _)| !is_hop(name) && !OURS.contains(name)) {
        let at = left.iter().position(|(found, _)| found == name);
        let at = at.unwrap_or_else(|| panic!("{name}: {} is missing", value.escape_ascii()));
        assert_eq!(text(left.remove(at).1), text(value.trim_ascii()), "{name}");
    }
    left.retain(|(name, _)| !OURS.contains(&&**name) && !HOP_BY_HOP.contains(&&**name));
    assert!(left.is_empty(), "nobody sent {left:?}");
}

/// As the server that is asked reads it: as UTF-8, or byte by byte where it is none.
fn text(value: &[u8]) -> String {
    std::str::from_utf8(value).map_or_else(|_| value.iter().map(|byte| char::from(*byte)).collect(), str::to_owned)
}

fn named(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    names.filter(|name| !name.is_empty()).collect()
}

fn pairs(headers: &HeaderMap) -> Vec<(&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// The lines that are headers.
fn parse(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii())) {
            headers.append(name, value);
        }
    }
    headers
}
