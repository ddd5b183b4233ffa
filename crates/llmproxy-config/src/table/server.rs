//! `server:`, and what the Go program had for it at the top.

use super::{Key, Kind::*, Words, block, key};

const CLIENT_AUTH: Words = Words::of(&["none", "request", "require"]);

pub(super) const KEYS: &[Key] = &[
    key("listen", Text, "", "the address to listen on").renamed("server.listen"),
    block("server", "the listener, and what it allows a client"),
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
        "server.max_body_size",
        Bytes,
        "10MiB",
        "the largest body of a request that is read whole; a larger one is answered with 413",
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
        "addresses or networks (CIDR) of proxies before this one; only their X-Forwarded-For is believed",
    ),
    key(
        "server.heartbeat",
        Duration,
        "",
        "after how much silence a stream gets a comment, to keep connections open; off when 0 or left out",
    ),
    block("server.cors", "answers to browsers of other origins").no_effect(),
    key("server.cors.enabled", Switch, "false", "whether they are given").no_effect(),
    key("server.cors.allowed_origins", Texts, "", "origins that may ask").no_effect(),
    key("server.cors.allowed_methods", Texts, "", "methods that they may use").no_effect(),
    key("server.cors.allowed_headers", Texts, "", "headers that they may send").no_effect(),
    key("server.cors.expose_headers", Texts, "", "headers that they may read").no_effect(),
    key("server.cors.allow_credentials", Switch, "", "whether they may send credentials").no_effect(),
    key("server.cors.max_age", Scalar, "", "how long browsers may remember").no_effect(),
    block("server.tls", "encryption by the proxy itself"),
    key("server.tls.enabled", Switch, "false", "whether it is on")
        .refused("the proxy would serve clear text; let a TLS terminator stand before it, and set this to false"),
    key("server.tls.cert_file", Text, "", "the certificate").no_effect(),
    key("server.tls.key_file", Text, "", "its key").no_effect(),
    key("server.tls.client_ca_file", Text, "", "who signs clients' certificates").no_effect(),
    key("server.tls.client_auth", Word(&CLIENT_AUTH), "", "whether clients must have one").no_effect(),
];
