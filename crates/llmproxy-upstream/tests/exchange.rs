//! Whole exchanges over real sockets: what the backend sees, and what comes back.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod raw;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use llmproxy_core::{Edits, Exchange, Insertion, RequestBody};
use llmproxy_upstream::UpstreamBody;
use raw::{Conn, Raw, Sender, header, post};

/// Sends `request`; the backend answers `answer` and stays open. Gives what the backend saw, and the answer.
async fn exchange(
    raw: &Raw,
    sender: &Sender,
    request: Request<RequestBody>,
    answer: &str,
) -> ((String, Vec<u8>), Response<UpstreamBody>, Conn) {
    let (response, (seen, conn)) = tokio::join!(sender.send(request), async {
        let mut conn = raw.accept().await;
        let seen = conn.request().await.unwrap();
        conn.write(answer).await;
        (seen, conn)
    });
    (seen, response.unwrap(), conn)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn the_backend_gets_the_request_as_it_was() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let body = "{ \"model\" : \"a\",\r\n\t\"x\": 1.0 }";
    let mut request = Request::put("/v1/x%2Fy/?a=b&c=%20+d&&e")
        .header("host", "proxy.example")
        .header("X-Twice", "1")
        .header("x-twice", "2")
        .header("content-type", "application/json")
        .header("content-length", "999")
        .header("connection", "close")
        .body(RequestBody::whole(body))
        .unwrap();
    let id = Exchange::of(request.extensions_mut()).id();
    let ((head, seen), response, _conn) = exchange(&raw, &sender, request, OK).await;
    assert!(head.starts_with("PUT /v1/x%2Fy/?a=b&c=%20+d&&e HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "host"), Some(&*raw.addr.to_string()));
    assert_eq!(header(&head, "content-length"), Some(&*body.len().to_string()));
    assert_eq!(header(&head, "x-request-id"), Some(&*id.to_string()));
    assert!(head.contains("x-twice: 1\r\nx-twice: 2\r\n"), "{head}");
    assert_eq!(header(&head, "connection"), None);
    assert_eq!(header(&head, "transfer-encoding"), None);
    assert_eq!(seen, body.as_bytes());
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_prefix_and_headers_of_the_backend_are_its_own() {
    let raw = Raw::bind().await;
    let mut backend = llmproxy_core::Backend::new(&format!("http://{}/llm/v1/", raw.addr)).unwrap();
    backend.headers.insert("authorization", "Bearer ours".parse().unwrap());
    let request = Request::get("/v1/models").header("authorization", "Bearer client").body(RequestBody::whole(""));
    let ((head, seen), ..) = exchange(&raw, &Sender::to(backend), request.unwrap(), OK).await;
    assert!(head.starts_with("GET /llm/v1/models HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "authorization"), Some("Bearer ours"));
    assert_eq!(header(&head, "content-length"), None);
    assert!(seen.is_empty());
}

#[tokio::test]
async fn edits_are_spliced_in_with_an_exact_length() {
    let raw = Raw::bind().await;
    let mut sender = Sender::to(raw.backend());
    sender.target.model = Some("longer-name".into());
    sender.target.inject_usage = true;
    let edits = Edits {
        model: Some(10..13),
        include_usage: Some(Insertion { at: 1..1, with: r#""stream_options":{"include_usage":true},"# }),
    };
    let request = post(RequestBody::Replay(r#"{"model" :"a"}"#.into(), edits));
    let ((head, seen), ..) = exchange(&raw, &sender, request, OK).await;
    let expected = r#"{"stream_options":{"include_usage":true},"model" :"longer-name"}"#;
    assert_eq!(String::from_utf8(seen).unwrap(), expected);
    assert_eq!(header(&head, "content-length"), Some(&*expected.len().to_string()));
    assert_eq!(header(&head, "accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn a_body_of_unknown_length_is_chunked_and_keeps_its_trailers() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let frames: [Result<_, std::convert::Infallible>; 2] =
        [Ok(http_body::Frame::data("piece".into())), Ok(http_body::Frame::trailers(trailers))];
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let mut request = post(RequestBody::stream(body));
    request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    let (response, head) = tokio::join!(sender.send(request), async {
        let mut conn = raw.accept().await;
        let head = conn.head().await.unwrap();
        let body = conn.until(b"\r\n\r\n").await;
        conn.write(OK).await;
        (head, String::from_utf8(body).unwrap())
    });
    response.unwrap();
    assert_eq!(header(&head.0, "transfer-encoding"), Some("chunked"));
    assert!(head.1.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{:?}", head.1);
}

#[tokio::test]
async fn the_answer_comes_back_as_it_was() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let answer = "HTTP/1.1 429 Slow Down\r\nserver: llama.cpp\r\nset-cookie: a\r\nset-cookie: b\r\nkeep-alive: timeout=5\r\n\
        connection: keep-alive, x-hop\r\nx-hop: 1\r\naccess-control-allow-origin: \r\nretry-after: 7\r\n\
        content-encoding: gzip\r\ncontent-length: 5\r\n\r\n\x1f\x0b\x08\x00\x01";
    let (_, response, _conn) = exchange(&raw, &sender, post(RequestBody::whole("x")), answer).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let headers = response.headers();
    assert_eq!(headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(headers["retry-after"], "7");
    assert_eq!(headers["server"], "llama.cpp");
    assert_eq!(headers["access-control-allow-origin"], "");
    assert_eq!(headers["content-encoding"], "gzip");
    for gone in ["connection", "keep-alive", "x-hop"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), &b"\x1f\x0b\x08\x00\x01"[..]);
}

#[tokio::test]
async fn each_chunk_passes_before_the_next_is_sent_and_trailers_last() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
    let (_, response, mut conn) = exchange(&raw, &sender, post(RequestBody::whole("x")), head).await;
    assert_eq!(response.headers()["trailer"], "x-sum");
    assert!(!response.headers().contains_key("transfer-encoding"));
    let mut body = response.into_body();
    assert_eq!(body.size_hint().upper(), None);
    for piece in ["data: 1\n\n", "data: 2\n", "\n"] {
        conn.write(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
    }
    conn.write("0\r\nx-sum: 7\r\nx-llmproxy-backend: another\r\nx-request-id: 1\r\nkeep-alive: 5\r\n\r\n").await;
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!((trailers["x-sum"].to_str().unwrap(), trailers.len()), ("7", 1), "{trailers:?}");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let check = async |method: Method, answer: &str, length: Option<&str>| {
        let raw = Raw::bind().await;
        let sender = Sender::to(raw.backend());
        let request = Request::builder().method(method).uri("/v1/models").body(RequestBody::whole("")).unwrap();
        let (_, response, _conn) = exchange(&raw, &sender, request, answer).await;
        assert_eq!(response.headers().get("content-length").map(|value| value.to_str().unwrap()), length);
        assert!(response.body().is_end_stream());
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    };
    check(Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 123\r\n\r\n", Some("123")).await;
    check(Method::GET, "HTTP/1.1 204 No Content\r\n\r\n", None).await;
    check(Method::GET, "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n", None).await;
    check(Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Some("0")).await;
}

#[tokio::test]
async fn redirects_are_the_clients_business() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let answer = "HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
    let (_, response, _conn) = exchange(&raw, &sender, post(RequestBody::whole("x")), answer).await;
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(response.headers()["location"], "/elsewhere");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_complete() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let (_, response, conn) =
        exchange(&raw, &sender, post(RequestBody::whole("x")), "HTTP/1.0 200 OK\r\n\r\nall").await;
    assert_eq!(response.version(), http::Version::HTTP_11);
    drop(conn);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "all");
}

#[tokio::test]
async fn a_change_of_protocol_that_nobody_asked_for_is_no_answer() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let (response, _conn) = tokio::join!(sender.post(""), async {
        let mut conn = raw.accept().await;
        conn.request().await.unwrap();
        conn.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
        conn
    });
    let error = response.unwrap_err().to_string();
    assert!(error.ends_with("not an HTTP answer: it switched protocols unasked"), "{error}");
}
