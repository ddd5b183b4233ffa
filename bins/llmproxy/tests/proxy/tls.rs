//! TLS towards clients: what is agreed upon, who is let in, and certificates that change.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use h2::client::Builder;
use llmproxy_testkit::{Backend, script};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    harness::{Folder, PATIENCE, Proxy, command, get, within},
    http2_client::Http2,
};

const REQUEST: &[u8] =
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";

/// A file of the folder beside this one; `make.sh` there says what they are.
fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxy/certificates").join(name)
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(made(&format!("{name}.pem"))).expect("a certificate")
}

/// The server's certificate and key in a folder of the test's own, where they can be changed.
fn put(folder: &Path, name: &str) {
    std::fs::copy(made(&format!("{name}.pem")), folder.join("cert.pem")).expect("the folder is ours");
    std::fs::copy(made(&format!("{name}.key")), folder.join("key.pem")).expect("the folder is ours");
}

fn config(backend: &str, folder: &Path, more: &str) -> String {
    let folder = folder.display();
    format!(
        "server: {{read_timeout: 20s, tls: {{cert_file: {folder}/cert.pem, key_file: {folder}/key.pem{more}}}}}\n\
         backends: [{{url: '{backend}', models: [m]}}]\nhealth_check: {{enabled: false}}\n"
    )
}

async fn backend() -> Backend {
    Backend::start(script::json(200, json!({"id": "x"}))).await
}

/// Connects, offers these protocols and shows this certificate.
async fn connect(
    address: SocketAddr,
    protocols: &[&str],
    client: Option<&str>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca")).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what they need")
        .with_root_certificates(roots);
    let mut config = match client {
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(made(&format!("{name}.key"))).expect("a key");
            config.with_client_auth_cert(vec![certificate(name)], key).expect("they belong together")
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    within("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// Asks over HTTP/1; the status.
async fn ask(mut stream: TlsStream<TcpStream>) -> std::io::Result<String> {
    stream.write_all(REQUEST).await?;
    let mut answer = [0; 1024];
    let read = within("an answer", stream.read(&mut answer)).await?;
    Ok(String::from_utf8_lossy(&answer[..read]).chars().skip(9).take(3).collect())
}

/// What the server shows.
async fn shown(address: SocketAddr) -> CertificateDer<'static> {
    let stream = connect(address, &[], None).await.expect("a handshake");
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().expect("the server's")[0].clone().into_owned()
}

#[tokio::test]
async fn what_is_spoken_is_agreed_upon_and_clear_text_is_not() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let proxy = Proxy::start(&config(&backend.url(), &folder, "")).await;
    let address = proxy.address();
    for (offered, agreed) in [(&["http/1.1"][..], Some(&b"http/1.1"[..])), (&[], None)] {
        let stream = connect(address, offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        assert_eq!(ask(stream).await.expect("an answer"), "200");
    }
    let stream = connect(address, &["h2", "http/1.1"], None).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = Http2::over(stream, &Builder::new(), "https://localhost".into()).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(client.post("/v1/chat/completions", &[], &json!({"model": "m"})).await);
    }
    for mut stream in streams {
        assert_eq!(stream.read_to_end().await.json()["id"], "x");
    }
    // The backend is told what it can't see.
    for seen in backend.seen() {
        let told = ["x-forwarded-proto", "forwarded"].map(|name| seen.header(name).unwrap_or_default().to_owned());
        assert!(told[0] == "https" && told[1].ends_with(";proto=https"), "{told:?}");
    }
    assert_eq!(backend.seen().last().and_then(|seen| seen.header("via")), Some("2 llmproxy"));
    let mut clear = TcpStream::connect(address).await.expect("connects");
    clear.write_all(REQUEST).await.expect("the proxy reads");
    let mut answer = Vec::new();
    let _ = within("the proxy to close", clear.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn http2_is_not_offered_where_it_is_off() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let yaml = config(&backend.url(), &folder, "").replace("server: {", "server: {http2: {enabled: false}, ");
    let proxy = Proxy::start(&yaml).await;
    let stream = connect(proxy.address(), &["h2", "http/1.1"], None).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_given_up() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let yaml = config(&backend.url(), &folder, "").replace("read_timeout: 20s", "read_timeout: 1500ms");
    let proxy = Proxy::start(&yaml).await;
    let mut silent = TcpStream::connect(proxy.address()).await.expect("connects");
    let mut answer = Vec::new();
    let _ = within("the proxy to close", silent.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "{answer:?}");
    // A head that does not come is answered all the same.
    let mut slow = connect(proxy.address(), &[], None).await.expect("a handshake");
    slow.write_all(b"GET / HTTP/1.1\r\n").await.expect("the proxy reads");
    let _ = within("the proxy to close", slow.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn one_more_than_may_be_open_is_closed_before_any_handshake() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let yaml = config(&backend.url(), &folder, "").replace("server: {", "server: {max_connections: 1, ");
    let proxy = Proxy::start(&yaml).await;
    let first = connect(proxy.address(), &[], None).await.expect("a handshake");
    assert!(connect(proxy.address(), &[], None).await.is_err());
    assert_eq!(ask(first).await.expect("an answer"), "200");
    // The first has left, and its place is free as soon as that is seen.
    within("a place", async { while connect(proxy.address(), &[], None).await.is_err() {} }).await;
}

#[tokio::test]
async fn clients_show_a_certificate_where_they_must_and_a_good_one_where_they_may() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let ca = made("ca.pem");
    for (auth, nobody, known, stranger) in
        [("none", true, true, true), ("request", true, true, false), ("require", false, true, false)]
    {
        let more = format!(", client_ca_file: {}, client_auth: {auth}", ca.display());
        let proxy = Proxy::start(&config(&backend.url(), &folder, &more)).await;
        for (client, passes) in [(None, nobody), (Some("client"), known), (Some("stranger"), stranger)] {
            let answer = match connect(proxy.address(), &[], client).await {
                Ok(stream) => ask(stream).await,
                Err(error) => Err(error),
            };
            // In TLS 1.3 a client hears of the refusal only with its first read.
            assert_eq!(answer.is_ok_and(|status| status == "200"), passes, "{auth} {client:?}");
        }
    }
}

#[tokio::test]
async fn a_certificate_is_read_again_when_it_changes_and_a_bad_one_leaves_the_old() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let mut proxy = Proxy::start(&config(&backend.url(), &folder, "")).await;
    assert_eq!(shown(proxy.address()).await, certificate("server"));
    let kept = connect(proxy.address(), &[], None).await.expect("a handshake");

    put(&folder, "renewed");
    proxy.logged("the certificate was read again").await;
    assert_eq!(shown(proxy.address()).await, certificate("renewed"));
    // A connection from before goes on.
    assert_eq!(ask(kept).await.expect("an answer"), "200");

    std::fs::copy(made("server.key"), folder.join("key.pem")).expect("the folder is ours");
    let line = proxy.logged("the old one stays in force").await;
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().is_some_and(|text| text.contains("key.pem is not that of")), "{line}");
    assert_eq!(shown(proxy.address()).await, certificate("renewed"));

    put(&folder, "server");
    proxy.logged("the certificate was read again").await;
    assert_eq!(shown(proxy.address()).await, certificate("server"));
}

#[tokio::test]
async fn a_certificate_that_can_t_be_used_is_named_at_the_start_and_by_check() {
    let check = async |cert: &str, key: &str, more: &str, parts: &[&str]| {
        let folder = Folder::new();
        put(&folder, "server");
        std::fs::write(folder.join("empty"), "").expect("the folder is ours");
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        std::fs::write(folder.join("encrypted"), encrypted).expect("the folder is ours");
        std::fs::copy(made("renewed.key"), folder.join("other.key")).expect("the folder is ours");
        let yaml = format!(
            "server: {{tls: {{cert_file: {cert}, key_file: {key}{more}}}}}\nbackends: [{{url: 'http://127.0.0.1:9'}}]\n"
        );
        std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
        for args in [&["serve"][..], &["check"]] {
            let mut command = command(&folder);
            command.args(args).env("LLMPROXY_SERVER__LISTEN", "127.0.0.1:0");
            let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("output");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{args:?}: {told}");
            for part in parts {
                assert!(told.contains(part), "{args:?}: {part} is not in:\n{told}");
            }
        }
    };
    check("nope.pem", "key.pem", "", &["nope.pem (server.tls.cert_file) can't be read", "that runs llmproxy"]).await;
    check("cert.pem", "nope.pem", "", &["nope.pem (server.tls.key_file) can't be read"]).await;
    check("empty", "key.pem", "", &["empty (server.tls.cert_file) has no certificate"]).await;
    check("key.pem", "key.pem", "", &["key.pem (server.tls.cert_file) has no certificate"]).await;
    check("cert.pem", "cert.pem", "", &["cert.pem (server.tls.key_file) has no private key"]).await;
    check("cert.pem", "encrypted", "", &["encrypted (server.tls.key_file)", "decrypted first"]).await;
    check("cert.pem", "other.key", "", &["other.key is not that of the certificate cert.pem (server.tls)"]).await;
    let more = ", client_auth: require, client_ca_file: empty";
    check("cert.pem", "key.pem", more, &["empty (server.tls.client_ca_file) has no certificate"]).await;
}

#[tokio::test]
async fn each_listener_has_its_own_and_they_share_the_rest() {
    let (folder, backend) = (Folder::new(), backend().await);
    put(&folder, "server");
    let yaml = format!(
        "server:\n  listeners:\n    - listen: 127.0.0.1:0\n      tls: {{cert_file: {0}/cert.pem, key_file: {0}/key.pem}}\n    \
         - listen: 127.0.0.1:0\nbackends: [{{url: '{1}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
        folder.display(),
        backend.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut others = Vec::new();
    for tls in [true, false] {
        let line = proxy.logged("listening").await;
        assert_eq!(line["tls"], tls, "{line}");
        others.push(line["address"].as_str().expect("an address").parse::<SocketAddr>().expect("an address"));
    }
    assert_eq!(get(proxy.address(), "/health").await.0, 200);
    assert_eq!(get(others[1], "/health").await.0, 200);
    let stream = connect(others[0], &[], None).await.expect("a handshake");
    assert_eq!(ask(stream).await.expect("an answer"), "200");
    assert_eq!(backend.counts().requests, 1);
    proxy.signal(rustix::process::Signal::TERM);
    for address in others {
        within("the listener to close", async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    assert!(proxy.exit().await.success());
}

#[tokio::test]
async fn a_websocket_passes_over_tls() {
    let backend = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let folder = Folder::new();
    put(&folder, "server");
    let url = format!("http://{}", backend.local_addr().expect("bound"));
    let proxy = Proxy::start(&config(&url, &folder, "")).await;
    let mut client = connect(proxy.address(), &["http/1.1"], None).await.expect("a connection");
    let head = "GET /v1/realtime?model=m HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("the proxy reads");
    let (mut there, _) = within("the backend to be asked", backend.accept()).await.expect("accepts");
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    while !asked.ends_with(b"\r\n\r\n") {
        assert!(within("a head", there.read_buf(&mut asked)).await.expect("open") > 0);
    }
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    there.write_all(agreed.as_bytes()).await.expect("the proxy reads");
    for _ in 0..3 {
        client.write_all(b"ping").await.expect("the proxy reads");
        while !asked.ends_with(b"ping") {
            assert!(within("a word of the client", there.read_buf(&mut asked)).await.expect("open") > 0);
        }
        there.write_all(b"pong").await.expect("the proxy reads");
        while !answered.ends_with(b"pong") {
            assert!(within("a word of the backend", client.read_buf(&mut answered)).await.expect("open") > 0);
        }
        asked.clear();
        answered.clear();
    }
    drop(there);
    // A close without TLS's own good-bye would be an error here.
    assert_eq!(within("the end", client.read(&mut [0; 8])).await.expect("a clean end"), 0);
}
