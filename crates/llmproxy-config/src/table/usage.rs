//! What is told to others, and what it costs: `usage:`, `pricing:`, and `usage_hook:` as it was once.

use super::{Key, Kind::*, Words, block, key};

const REPORTERS: Words = Words::of(&["webhook", "file", "stdout", "database", "builtin"]);

const DURABILITY: Words = Words::of(&["relaxed", "strict"]);

const SCRIPTS: &str =
    "scripts are not run by this version, and what this one decides would go undecided; disable or remove it";

pub(super) const KEYS: &[Key] = &[
    block("usage", "records of what each request came to, and where they go"),
    key(
        "usage.enabled",
        Switch,
        "false",
        "whether they are kept and sent; without it, tokens are counted and limited all the same",
    ),
    key(
        "usage.durability",
        Word(&DURABILITY),
        "relaxed",
        "what records are safe against: the process's death within 10 ms of an answer's end, or the loss of power before it",
    ),
    key(
        "usage.queue_size",
        Integer,
        "10000",
        "records that may be in memory, those of running requests included; beyond that, requests are answered with 503",
    ),
    key(
        "usage.admit_timeout",
        Duration,
        "1s",
        "how long a request may wait for a place among them; in strict durability also for its beginning to be written",
    ),
    key(
        "usage.commit_timeout",
        Duration,
        "5s",
        "in strict durability, how long an answer's end may wait for its record before the answer is broken off",
    ),
    block("usage.ledger", "the file that records go into first"),
    key("usage.ledger.path", Text, "./data/usage.db", "where it is"),
    key("usage.ledger.max_age", Duration, "168h", "how long records are kept that every reporter has had"),
    key(
        "usage.ledger.max_size",
        Integer,
        "1073741824",
        "how large it may grow before these go earlier, in bytes; what a reporter has not had is kept",
    ),
    key("usage.reporters", Blocks, "", "where they are sent"),
    key(
        "usage.reporters[].name",
        Text,
        "",
        "its name in logs and metrics, and no other's; the host of its URL, its storage, or its type, where it has none",
    ),
    key("usage.reporters[].type", Word(&REPORTERS), "webhook", "how they are sent"),
    key("usage.reporters[].enabled", Switch, "true", "whether they are"),
    block("usage.reporters[].filter", "which records it gets: those that fit each of the lists that are there"),
    key(
        "usage.reporters[].filter.models",
        Texts,
        "",
        "models, as clients or backends name them; `*` stands for any text",
    ),
    key("usage.reporters[].filter.keys", Texts, "", "names or fingerprints of keys, in the same way"),
    key("usage.reporters[].filter.paths", Texts, "", "paths of requests"),
    key("usage.reporters[].filter.users", Texts, "", "users"),
    key(
        "usage.reporters[].fields",
        Texts,
        "",
        "the fields of a record that are sent, beside `request_id` and `schema`; all where it is left out",
    ),
    key("usage.reporters[].webhook", Block, "", "HTTP requests with JSON, for each record or for many"),
    key("usage.reporters[].webhook.url", Url, "", "where to"),
    key("usage.reporters[].webhook.method", Text, "POST", "the request's method"),
    key("usage.reporters[].webhook.timeout", Duration, "3s", "how long an answer may take"),
    key(
        "usage.reporters[].webhook.retry",
        Integer,
        "3",
        "how often a record, or a batch, is sent once more at short distance when that failed; after those the receiver \
         counts as down and is tried about twice a minute at most",
    ),
    key("usage.reporters[].webhook.max_age", Duration, "168h", "how long a record is tried"),
    key(
        "usage.reporters[].webhook.dead_letter",
        Text,
        "",
        "file for records that were refused or have become too old; beside the others' where it is left out",
    ),
    key(
        "usage.reporters[].webhook.max_in_flight",
        Integer,
        "1",
        "requests that may be on their way at a time, up to 64; more than one gives up the order",
    ),
    key(
        "usage.reporters[].webhook.secret",
        Secret,
        "",
        "signs requests as Standard Webhooks says: `whsec_` and 24 to 64 bytes in base64; several, separated by blanks, \
         give a signature each",
    ),
    key("usage.reporters[].webhook.headers", Map, "", "headers of the request"),
    key("usage.reporters[].webhook.headers.*", Secret, "", "a header's value"),
    key(
        "usage.reporters[].webhook.include_request_body",
        Switch,
        "false",
        "whether the record holds the whole request, prompts included",
    ),
    key(
        "usage.reporters[].webhook.batch_size",
        Integer,
        "1",
        "records in a request at most, up to 1000; with 1 each is sent as a JSON object, with more as an array of them",
    ),
    key(
        "usage.reporters[].webhook.batch_interval",
        Duration,
        "1s",
        "how long a record may wait for others to fill its batch",
    ),
    block("usage.reporters[].file", "a file of JSON lines; full ones are put beside it as NAME-TIME.jsonl"),
    key("usage.reporters[].file.path", Text, "", "its path; missing folders are made"),
    key("usage.reporters[].file.max_size", Bytes, "100MiB", "the size at which it is full, 64KiB or more; 0, never"),
    key("usage.reporters[].file.max_size_mb", Any, "", "the same in MiB")
        .refused("write it as `max_size` with a unit, such as max_size: 100MiB"),
    key(
        "usage.reporters[].file.max_age",
        Duration,
        "0s",
        "the age at which it is full, too, and at which full ones are removed; 0, none is",
    ),
    key("usage.reporters[].file.max_backups", Integer, "0", "how many full ones are kept; 0, all"),
    key("usage.reporters[].file.compress", Switch, "false", "whether full ones are packed with gzip"),
    key(
        "usage.reporters[].file.sync",
        Switch,
        "false",
        "whether a record counts as delivered only when it is safe against a loss of power",
    ),
    key("usage.reporters[].database", Block, "", "a table of a SQL database"),
    key("usage.reporters[].database.storage", Text, "", "the database: the name of an entry of storage.databases"),
    key(
        "usage.reporters[].database.table",
        Text,
        "usage_records",
        "the table, perhaps with its schema; it is made, or gets the columns that it lacks",
    ),
    key(
        "usage.reporters[].database.include_request_body",
        Switch,
        "false",
        "whether the column request_body holds the whole request, prompts included",
    ),
    key("usage.reporters[].database.batch_size", Integer, "500", "records in a transaction at most, up to 1000"),
    key(
        "usage.reporters[].database.batch_interval",
        Duration,
        "1s",
        "how long a record may wait for others to fill its batch",
    ),
    key("usage.reporters[].builtin", Block, "", "SQLite in the admin database, admin.db_path"),
    key(
        "usage.reporters[].builtin.retention_days",
        Integer,
        "0",
        "days after which records are removed there; their sums by hour and day stay. 0 keeps everything",
    ),
    key("usage.reporters[].script", Script, "", "decides what is sent").refused(SCRIPTS),
    block("pricing", "what tokens cost: in each record, and in the metrics"),
    key("pricing.currency", Text, "USD", "what the prices are in; any text"),
    key(
        "pricing.models",
        Blocks,
        "",
        "the prices; the first entry for a model counts, and a model without one has no cost",
    ),
    key("pricing.models[].models", Texts, "", "the models, as clients or backends name them; `*` stands for any text"),
    key("pricing.models[].input", Number, "0", "price of a million tokens of prompts"),
    key(
        "pricing.models[].cached_input",
        Number,
        "",
        "of those among them that the backend had cached; as the others where it is left out",
    ),
    key("pricing.models[].output", Number, "0", "price of a million tokens of answers"),
    key("usage_hook", Any, "", "enabled, url, timeout, retry of one webhook, or its own list of reporters")
        .renamed("usage.reporters"),
];
