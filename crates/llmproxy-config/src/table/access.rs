//! Who may call and how much: `auth:`, `api_keys:`, `rate_limit:`.

use super::{Key, Kind::*, Words, block, key, metering::ON_ABORT};

const MODES: Words = Words::of(&["first_match", "all"]);
const PROVIDERS: Words = Words {
    later: &["redis", "database", "webhook", "lua", "file"],
    why: "this version can't ask that provider, so nobody or the wrong ones would pass; use static or builtin, or \
          disable the entry",
    ..Words::of(&["static", "builtin"])
};
const LIMIT_STORAGE: Words = Words {
    later: &["redis"],
    why: "limits are kept in memory, so several proxies would each allow the whole; use memory",
    ..Words::of(&["memory"])
};

const SCRIPTS: &str =
    "scripts are not run by this version, and what this one decides would go undecided; disable or remove it";
const QUOTA: &str = "quotas are not kept by this version, so the key would go past its own; remove it";
const LIMITS: &str = "limits of this kind are not kept by this version, so there would be none; remove it";

pub(super) const KEYS: &[Key] = &[
    block("auth", "who may call"),
    key("auth.enabled", Switch, "false", "whether a key is asked for; without a pipeline, the builtin key store is what knows them"),
    key("auth.mode", Word(&MODES), "first_match", "whether the first entry of the pipeline that knows a key decides, or all must accept it"),
    key("auth.skip_paths", Texts, "[]", "paths that need no key, by whole segments; /health, /ready and the metrics never do"),
    key("auth.header_names", Texts, "[Authorization, X-API-Key]", "headers that may carry the key; the first that is there counts"),
    block("auth.status_codes", "how a refusal is answered"),
    block("auth.status_codes.active", "a key in order"),
    block("auth.status_codes.disabled", "a key that was switched off"),
    block("auth.status_codes.expired", "a key past its time"),
    block("auth.status_codes.quota_exceeded", "a key that has used up what it had"),
    block("auth.status_codes.not_found", "no such key"),
    key("auth.status_codes.active.allow", Switch, "", "whether it passes"),
    key("auth.status_codes.active.http_code", Integer, "", "the status of the answer if not"),
    key("auth.status_codes.active.message", Text, "", "its text"),
    key("auth.status_codes.disabled.allow", Switch, "", "whether it passes"),
    key("auth.status_codes.disabled.http_code", Integer, "", "the status of the answer if not; 403 when left out"),
    key("auth.status_codes.disabled.message", Text, "", "its text"),
    key("auth.status_codes.expired.allow", Switch, "", "whether it passes"),
    key("auth.status_codes.expired.http_code", Integer, "", "the status of the answer if not; 403 when left out"),
    key("auth.status_codes.expired.message", Text, "", "its text"),
    key("auth.status_codes.quota_exceeded.allow", Switch, "", "whether it passes"),
    key("auth.status_codes.quota_exceeded.http_code", Integer, "", "the status of the answer if not; 429 when left out"),
    key("auth.status_codes.quota_exceeded.message", Text, "", "its text"),
    key("auth.status_codes.not_found.allow", Switch, "", "whether it passes"),
    key("auth.status_codes.not_found.http_code", Integer, "", "the status of the answer if not; 401 when left out"),
    key("auth.status_codes.not_found.message", Text, "", "its text"),
    key("auth.pipeline", Blocks, "", "who knows the keys, in the order in which they are asked"),
    key("auth.pipeline[].name", Text, "", "the entry's name in logs"),
    key("auth.pipeline[].type", Word(&PROVIDERS), "", "keys in this file, or the builtin key store (admin.db_path)"),
    key("auth.pipeline[].enabled", Switch, "true", "whether it is asked"),
    key("auth.pipeline[].static", Block, "", "keys in this file"),
    key("auth.pipeline[].static.keys", Blocks, "", "the keys"),
    key("auth.pipeline[].static.keys[].key", Secret, "", "the key in clear, or `sha256:` and the hash of it in hex"),
    key("auth.pipeline[].static.keys[].name", Text, "", "the name that logs, records and backends see"),
    key("auth.pipeline[].static.keys[].user_id", Text, "", "the user that it belongs to"),
    key("auth.pipeline[].static.keys[].status", Scalar, "active", "active, disabled, expired or quota_exceeded; or 0, 1, 3, 2 for these"),
    key("auth.pipeline[].static.keys[].allowed_models", Texts, "", "the models that it may use; all when left out"),
    key("auth.pipeline[].static.keys[].on_abort", Word(&ON_ABORT), "", "what is billed when its holder leaves an answer; what metering.on_abort says when left out"),
    key("auth.pipeline[].static.keys[].tag", Text, "", "a word that routing.rules may route its requests by"),
    key("auth.pipeline[].static.keys[].allowed_ips", Texts, "[]", "addresses or networks that it may be used from; all when left out"),
    key("auth.pipeline[].static.keys[].denied_ips", Texts, "[]", "addresses or networks that it may not be used from"),
    key("auth.pipeline[].static.keys[].starts_at", Text, "", "from when it counts (RFC 3339)"),
    key("auth.pipeline[].static.keys[].expires_at", Text, "", "until when it counts (RFC 3339)"),
    key("auth.pipeline[].static.keys[].total_quota", Number, "", "what it may use in all").refused(QUOTA),
    key("auth.pipeline[].static.keys[].used_quota", Number, "", "what it has used").no_effect(),
    key("auth.pipeline[].static.keys[].quota_reset_period", Scalar, "", "how often that begins anew").no_effect(),
    key("auth.pipeline[].static.keys[].last_reset_at", Text, "", "when it did last").no_effect(),
    key("auth.pipeline[].static.keys[].created_at", Text, "", "a note for people; nothing depends on it"),
    key("auth.pipeline[].static.keys[].updated_at", Text, "", "a note for people; nothing depends on it"),
    key("auth.pipeline[].redis", Any, "", "storage, key_pattern, addr, password, db").no_effect(),
    key("auth.pipeline[].database", Any, "", "storage, table, key_column, fields, driver, dsn").no_effect(),
    key("auth.pipeline[].webhook", Any, "", "url, method, timeout, headers").no_effect(),
    key("auth.pipeline[].lua", Any, "", "path, script, timeout, max_memory").no_effect(),
    key("auth.pipeline[].lua_script", Any, "", "the script, in older documentation").refused(SCRIPTS),
    key("auth.pipeline[].lua_script_file", Any, "", "its file, in older documentation").refused(SCRIPTS),
    key("auth.pipeline[].script", Script, "", "decides about the key").refused(SCRIPTS),
    key("auth.storage", Any, "", "where keys are, in older documentation").no_effect(),
    key("auth.defaults", Any, "", "what keys have in common, in older documentation").no_effect(),
    key("api_keys", Any, "", "a list of keys, each as in auth.pipeline[].static.keys[]; makes them a static entry of the pipeline and switches auth on")
        .renamed("auth.pipeline"),
    block("rate_limit", "how much callers may use; 0 is no limit"),
    key("rate_limit.enabled", Switch, "false", "whether limits count"),
    key("rate_limit.storage", Word(&LIMIT_STORAGE), "memory", "where the counts are"),
    key("rate_limit.redis", Any, "", "the cache of storage.caches to count in").no_effect(),
    key("rate_limit.default_completion_tokens", Integer, "1024", "tokens that are reserved for an answer whose length the request does not bound, until the model's mean is known"),
    key("rate_limit.script", Script, "", "decides what passes").refused(SCRIPTS),
    block("rate_limit.global", "limits of all callers together; on as soon as it sets anything"),
    key("rate_limit.global.enabled", Switch, "", "`false` switches the block off"),
    key("rate_limit.global.requests_per_second", Integer, "0", "requests a second"),
    key("rate_limit.global.requests_per_minute", Integer, "0", "requests a minute"),
    key("rate_limit.global.tokens_per_minute", Integer, "0", "tokens a minute, prompt and answer together"),
    key("rate_limit.global.max_concurrent", Integer, "0", "requests at a time, each to its last byte"),
    key("rate_limit.global.burst_size", Integer, "", "requests at once within requests_per_second; twice that when left out"),
    block("rate_limit.per_key", "limits of each key, or of each client address where no key is asked for; on as soon as it sets anything"),
    key("rate_limit.per_key.enabled", Switch, "", "`false` switches the block off"),
    key("rate_limit.per_key.requests_per_second", Integer, "0", "requests a second"),
    key("rate_limit.per_key.requests_per_minute", Integer, "0", "requests a minute"),
    key("rate_limit.per_key.tokens_per_minute", Integer, "0", "tokens a minute, prompt and answer together"),
    key("rate_limit.per_key.max_concurrent", Integer, "0", "requests at a time, each to its last byte"),
    key("rate_limit.per_key.burst_size", Integer, "", "requests at once within requests_per_second; twice that when left out"),
    key("rate_limit.per_user", Any, "", "limits of each user").refused(LIMITS),
    key("rate_limit.per_model", Any, "", "limits of each model").refused(LIMITS),
    key("rate_limit.per_backend", Any, "", "limits of each backend").refused(LIMITS),
];
