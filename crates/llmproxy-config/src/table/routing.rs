//! Where requests go: `backends:`, `discovery:`, `routing:`, `health_check:`.

use super::{Key, Kind::*, Words, block, key};

const STRATEGIES: Words = Words {
    meant: &[("least_conn", "least_connections"), ("random", "round_robin")],
    ..Words::of(&["round_robin", "least_connections", "latency_based"])
};
const INJECTION: Words = Words {
    meant: &[("true", "always"), ("on", "always"), ("false", "never"), ("off", "never")],
    ..Words::of(&["auto", "always", "never"])
};
const COMMIT: Words = Words::of(&["head", "first_byte"]);

const SCRIPTS: &str =
    "scripts are not run by this version, and what this one decides would go undecided; disable or remove it";

pub(super) const KEYS: &[Key] = &[
    key("backends", Blocks, "", "the servers that do the work; at least one"),
    key("backends[].url", Url, "", "where it is, like `http://vllm:8000`; a trailing `/` or `/v1` is taken off"),
    key("backends[].name", Text, "", "its name in logs, records and metrics; the URL when left out"),
    key("backends[].weight", Integer, "1", "its share of the work, beside the others'; 0 gets none"),
    key("backends[].timeout", Duration, "", "as routing.timeout, for this one"),
    key("backends[].connect_timeout", Duration, "", "as routing.connect_timeout, for this one"),
    key("backends[].max_idle_conns", Integer, "", "how many idle connections are kept; 256 when left out"),
    key(
        "backends[].http2",
        Switch,
        "false",
        "whether it is asked over HTTP/2: at once where the URL says http, where it agrees where it says https",
    ),
    key(
        "backends[].ca_file",
        Text,
        "",
        "a file of certificates (PEM), of which one must vouch for it; those that the machine trusts when left out. Read again with each reload",
    ),
    key("backends[].preserve_host", Switch, "false", "whether it gets the client's Host in the place of its own"),
    key("backends[].headers", Map, "", "headers that every request to it gets"),
    key("backends[].headers.*", Secret, "", "a header's value, such as the backend's own key"),
    key(
        "backends[].tier",
        Integer,
        "0",
        "backends of a lower tier are asked first; a higher one's when those are full or out",
    ),
    key("backends[].group", Text, "", "the group that a rule of routing.rules may send requests to"),
    key(
        "backends[].max_concurrent",
        Integer,
        "",
        "the most requests that are there at a time; the next one waits in the queue",
    ),
    key(
        "backends[].max_tokens",
        Integer,
        "",
        "the most tokens, of prompts and of answers as far as they can be foreseen, that are there at a time",
    ),
    key("backends[].models", Texts, "", "the models that it serves; asked for at /v1/models when left out"),
    key(
        "backends[].inject_usage",
        Word(&INJECTION),
        "auto",
        "whether it is asked for usage in streams whose clients did not ask; `auto` stops where it has refused a request for that",
    ),
    block("discovery", "backends that are found rather than written down"),
    key("discovery.enabled", Switch, "false", "whether they are looked for").refused(
        "backends that only discovery knows would be missing; write them under `backends`, and set this to false",
    ),
    key("discovery.mode", Word(&Words::of(&["merge", "first"])), "", "whether all sources count").no_effect(),
    key("discovery.interval", Duration, "", "how often they are looked for").no_effect(),
    key("discovery.sources", Blocks, "", "where they are looked for").no_effect(),
    key("discovery.sources[].name", Text, "", "its name").no_effect(),
    key("discovery.sources[].type", Text, "", "database, static, consul, kubernetes, etcd or http").no_effect(),
    key("discovery.sources[].enabled", Switch, "", "whether it is asked").no_effect(),
    key("discovery.sources[].script", Script, "", "finds them").no_effect(),
    key("discovery.sources[].database", Any, "", "storage, table, fields").no_effect(),
    key("discovery.sources[].static", Any, "", "backends").no_effect(),
    key("discovery.sources[].consul", Any, "", "addr, service, tag, interval").no_effect(),
    key("discovery.sources[].kubernetes", Any, "", "namespace, service, port, label_selector").no_effect(),
    key("discovery.sources[].etcd", Any, "", "endpoints, prefix, username, password").no_effect(),
    key("discovery.sources[].http", Any, "", "url, method, interval, timeout, headers").no_effect(),
    key("load_balance_strategy", Word(&STRATEGIES), "", "how a backend is picked").renamed("routing.load_balance"),
    block(
        "routing",
        "how a backend is picked, and what happens when it fails; `enabled: false` leaves all of it at its defaults",
    ),
    key("routing.enabled", Switch, "true", "whether the rest of the block counts"),
    key("routing.load_balance", Word(&STRATEGIES), "round_robin", "how a backend is picked; weights count in each"),
    key("routing.strategy", Word(&STRATEGIES), "", "the same").renamed("routing.load_balance"),
    key("routing.load_balance_strategy", Word(&STRATEGIES), "", "the same").renamed("routing.load_balance"),
    key(
        "routing.timeout",
        Duration,
        "5m",
        "the longest wait for an answer's first byte, and for the whole of a JSON answer; does not bound a stream's whole",
    ),
    key("routing.connect_timeout", Duration, "5s", "the longest wait for a connection to a backend"),
    key("routing.gap_timeout", Duration, "2m", "the longest silence in the middle of an answer"),
    key(
        "routing.commit",
        Word(&COMMIT),
        "head",
        "when an answer is the client's, so that no other backend is tried: with its head, or with a stream's first byte",
    ),
    key("routing.commit_after", Duration, "2s", "with `commit: first_byte`, the longest that a head is held back"),
    key(
        "routing.allow_paths",
        Texts,
        "[]",
        "paths that pass beside the usual ones, by whole segments: `/pooling` passes /pooling and /pooling/x",
    ),
    key(
        "routing.explain",
        Switch,
        "false",
        "whether answers say by x-llmproxy-backend which backend gave them, and by x-llmproxy-attempts how many were asked",
    ),
    key("routing.model_mapping", Map, "", "models by other names"),
    key("routing.model_mapping.*", Text, "", "the model that a request for this name is served by"),
    block("routing.retry", "whether another backend is tried when one fails before its answer is the client's"),
    key("routing.retry.enabled", Switch, "true", "whether it is"),
    key("routing.retry.max_retries", Integer, "3", "how often"),
    key(
        "routing.retry.initial_wait",
        Duration,
        "1s",
        "the wait before a backend that failed is asked again; another one is asked at once",
    ),
    key("routing.retry.max_wait", Duration, "10s", "the longest such wait"),
    key("routing.retry.multiplier", Number, "2", "by what it grows"),
    key(
        "routing.retry.budget",
        Number,
        "0.2",
        "how many more attempts there may be in all, as a share of the requests of the last ten seconds; three a second always may",
    ),
    key(
        "routing.retry.retry_on",
        Texts,
        "[connect, reset, 502, 503, 504]",
        "what counts as failing: connect, reset, timeout, 5xx, or a status",
    ),
    key("routing.fallback", Blocks, "", "models to serve instead").no_effect(),
    key("routing.fallback[].models", Texts, "", "of which models").no_effect(),
    key("routing.fallback[].primary", Text, "", "the first choice").no_effect(),
    key("routing.fallback[].fallback", Texts, "", "the others").no_effect(),
    key("routing.script", Script, "", "picks the backend").refused(SCRIPTS),
    block("queue", "the line in which requests wait while every backend that could take them is full"),
    key("queue.timeout", Duration, "30s", "the longest wait; then 503"),
    key("queue.max_waiting", Integer, "1000", "how many may wait at a time; 0 refuses at once whoever finds no room"),
    block("health_check", "how it is known that a backend is up"),
    key("health_check.enabled", Switch, "true", "whether backends are asked"),
    key("health_check.interval", Duration, "30s", "how often"),
    key("health_check.timeout", Duration, "5s", "how long an answer may take"),
    key("health_check.method", Text, "GET", "the request's method"),
    key(
        "health_check.path",
        Text,
        "",
        "the request's path; when left out, any answer below 500 on /health, else on /v1/models, will do",
    ),
    key("health_check.expected_status", Integer, "200", "the only good answer, where a path is given"),
    key("health_check.unhealthy_threshold", Integer, "3", "failures in a row that take a backend out"),
    key("health_check.healthy_threshold", Integer, "2", "good answers in a row that bring it back"),
    key("health_check.script", Script, "", "decides whether it is up").refused(SCRIPTS),
];
