//! `server:`, and what the Go program had for it at the top.

use super::{Key, Kind::*, Words, block, key};

const CLIENT_AUTH: Words = Words::of(&["none", "request", "require"]);

// A listener has the same block wherever it stands.
const ENABLED: &str = "whether it is on; where it is left out, it is as soon as a certificate is named";
const CERT: &str = "the certificate and those that it was signed by, in PEM; read again when it changes";
const KEY: &str = "the certificate's private key, in PEM; read again when it changes";
const CLIENT_CA: &str = "the certificates that sign clients' certificates, in PEM; read again when it changes";
const AUTH: &str = "whether clients must show a certificate: `request` checks one if there is one, `none` asks for none; needs \
                    `client_ca_file`";

pub(super) const KEYS: &[Key] = &[
    key("listen", Text, "", "the address to listen on").renamed("server.listen"),
    block("server", "the listeners, and what they allow a client"),
    key(
        "server.listen",
        Text,
        ":8000",
        "where to listen: `:8000` on all interfaces, or `host:port`; a change needs a restart",
    ),
    key(
        "server.read_timeout",
        Duration,
        "30s",
        "the longest wait for a request's head, and for each next piece of its body",
    ),
    key(
        "server.write_timeout",
        Duration,
        "60s",
        "how long a client may go without reading while an answer waits for it; does not bound a stream's whole",
    ),
    key("server.idle_timeout", Duration, "120s", "how long a connection without a request is kept"),
    key("server.max_header_bytes", Bytes, "1MiB", "the largest head of a request; at least 8192"),
    key(
        "server.max_headers",
        Integer,
        "100",
        "the most headers that a request may have; one with more is answered with 431",
    ),
    key(
        "server.max_connections",
        Integer,
        "10000",
        "how many client connections may be open at a time, over all listeners; 0 for any number. One more is answered with 503",
    ),
    key(
        "server.max_body_size",
        Bytes,
        "10MiB",
        "the largest body of a request that is read whole; a larger one is answered with 413",
    ),
    key(
        "server.max_upload_size",
        Bytes,
        "",
        "the largest body that passes through, such as a form with an audio file; as max_body_size when left out",
    ),
    key(
        "server.max_buffered_bytes",
        Bytes,
        "256MiB",
        "the most that all such bodies together may take in memory; past it requests are answered with 503",
    ),
    key(
        "server.shutdown_timeout",
        Duration,
        "30s",
        "how long requests under way may take to finish once the proxy is told to stop",
    ),
    key(
        "server.trusted_proxies",
        Networks,
        "[]",
        "addresses or networks (CIDR) of proxies before this one; only their word about where a request comes from is believed",
    ),
    key(
        "server.heartbeat",
        Duration,
        "",
        "after how much silence a stream gets a comment, to keep connections open; off when 0 or left out",
    ),
    block("server.cors", "which pages of other origins browsers let ask, and what they may read"),
    key("server.cors.enabled", Switch, "", "`false` switches the block off; on where it names an origin"),
    key(
        "server.cors.allowed_origins",
        Texts,
        "",
        "origins that may ask: `https://chat.example.com`, `https://*.example.com` for what is below it, or `*`",
    ),
    key("server.cors.allowed_methods", Texts, "[GET, POST, DELETE]", "methods that they may use; `*` for any"),
    key(
        "server.cors.allowed_headers",
        Texts,
        "['*']",
        "headers that they may send; `*` for any, Authorization among them",
    ),
    key(
        "server.cors.expose_headers",
        Texts,
        "",
        "headers of answers that they may read; x-request-id, retry-after and those of limits when left out",
    ),
    key(
        "server.cors.allow_credentials",
        Switch,
        "false",
        "whether they may send cookies and the like, which a key in a header does not need; not with origin `*`",
    ),
    key("server.cors.max_age", Duration, "", "how long browsers may remember it; their own default when left out"),
    block("server.http2", "HTTP/2 from clients, by prior knowledge and over TLS"),
    key("server.http2.enabled", Switch, "true", "whether it is spoken"),
    key("server.http2.max_streams", Integer, "256", "how many requests may be under way on one connection at a time"),
    block("server.tls", "encryption at `server.listen`"),
    key("server.tls.enabled", Switch, "", ENABLED),
    key("server.tls.cert_file", File, "", CERT),
    key("server.tls.key_file", File, "", KEY),
    key("server.tls.client_ca_file", File, "", CLIENT_CA),
    key("server.tls.client_auth", Word(&CLIENT_AUTH), "", AUTH),
    Key {
        kind: Blocks,
        ..block("server.listeners", "more places to listen at; with `server.listen` left out, the only ones")
    },
    key("server.listeners[].listen", Text, "", "the address to listen on, as in `server.listen`"),
    block("server.listeners[].tls", "encryption there"),
    key("server.listeners[].tls.enabled", Switch, "", ENABLED),
    key("server.listeners[].tls.cert_file", File, "", CERT),
    key("server.listeners[].tls.key_file", File, "", KEY),
    key("server.listeners[].tls.client_ca_file", File, "", CLIENT_CA),
    key("server.listeners[].tls.client_auth", Word(&CLIENT_AUTH), "", AUTH),
];
