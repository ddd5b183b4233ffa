//! The files that we ship, the snippets that were published, and a file of the program that this one replaces.

use std::{fs, path::PathBuf};

use llmproxy_config::{Config, LoadOptions, Loaded, load, load_str};

fn options() -> LoadOptions {
    LoadOptions { variables: Some([].into()), ..LoadOptions::default() }
}

fn fixture(name: &str) -> Loaded {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    load(&path, &options()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn without_warnings(name: &str) -> Config {
    let loaded = fixture(name);
    assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
    loaded.config
}

#[test]
fn every_file_that_we_ship_loads_without_a_warning() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let strict = LoadOptions { strict: true, ..options() };
        let loaded = load(&path, &strict).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(loaded.warnings.is_empty(), "{}: {:?}", path.display(), loaded.warnings);
        files += 1;
    }
    assert!(files >= 3);
}

#[test]
fn the_published_configuration_does_what_it_says() {
    let config = without_warnings("whole.yaml");
    assert_eq!(config.server.all_listeners()[0].addresses(), ["[::]:8000", "0.0.0.0:8000"]);
    assert_eq!(config.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [5, 3]);
    assert!(config.auth.enabled && config.auth.needs_store());
    assert_eq!(config.auth.skip_paths, ["/health", "/metrics"]);
    assert!(config.usage.enabled);
    assert_eq!(config.usage.reporters[0].name, "billing");
    assert!(config.rate_limit.enabled);
    assert_eq!(config.rate_limit.per_key.requests_per_minute, 60);
    assert_eq!(config.rate_limit.per_key.max_concurrent, 3);
}

#[test]
fn the_published_snippets_load() {
    let balanced = without_warnings("balanced.yaml");
    assert_eq!(format!("{:?}", balanced.routing.load_balance), "LeastConnections");
    assert_eq!(without_warnings("cheapest.yaml").backends.len(), 2);
}

#[test]
fn a_file_of_the_go_program_starts_and_says_what_it_should_say() {
    let Loaded { config, warnings } = fixture("legacy.yaml");
    assert_eq!(config.server.listen, ":9000");
    assert_eq!(config.backends[0].weight, 2);
    assert_eq!(config.auth.pipeline.len(), 1);
    assert_eq!(config.auth.pipeline[0].static_keys.keys[0].name, "alice");
    assert_eq!(config.usage.reporters[0].name, "usage_hook");
    assert!(config.usage.enabled);
    let paths: Vec<&str> = warnings.iter().map(|warning| warning.path.as_str()).collect();
    let expected = [
        "listen",
        "load_balance_strategy",
        "log.file.max_backups",
        "log.file.max_size_mb",
        "log.format",
        "log.level",
        "routing.load_balance",
        "server.read_timeout",
        "usage_hook",
    ];
    assert_eq!(paths, expected);
    assert!(warnings.iter().all(|warning| !warning.to_string().contains("secret")), "{warnings:?}");
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = "
server: {listen: here, read_timeout: soon}
backends:
  - url: vllm:8000
  - url: http://a
    weight: 99999999999
    timeot: 5s
    inject_usage: sometimes
auth: {enabled: true, pipeline: [{type: redis, enabled: false}, {type: static, static: {keys: [{name: nobody}]}}]}
routing: {load_balance: fastest, retry: {multiplier: 0.5}}
metrics: {path: metrics}
";
    let error = load_str(text, &LoadOptions { strict: true, ..options() }).unwrap_err();
    let paths: Vec<&str> = error.mistakes().iter().map(|mistake| mistake.path.as_str()).collect();
    let expected = [
        "auth.pipeline[1].static.keys[0].key",
        "backends[0].url",
        "backends[1].inject_usage",
        "backends[1].timeot",
        "backends[1].weight",
        "metrics.path",
        "routing.load_balance",
        "routing.retry.multiplier",
        "server.listen",
        "server.read_timeout",
    ];
    assert_eq!(paths, expected, "{error}");
}

#[test]
fn no_message_quotes_a_secret() {
    let text = "
backends: [{url: 'http://user:hunter22@', headers: {'bad name': Bearer sk-backend}}]
auth: {enabled: true, pipeline: [{type: static, static: {keys: [{key: sha256:notahash-sk-alice, expires_at: never}]}}]}
usage: {enabled: true, reporters: [{webhook: {url: 'ftp://me:pass-word@x', headers: {A: ['sk-list']}}}]}
admin: {enabled: true, token: [sk-admin]}
secret_key: sk-unknown
";
    let error = load_str(text, &LoadOptions { strict: true, ..options() }).unwrap_err().to_string();
    assert!(error.contains("secret_key"), "{error}");
    for secret in ["hunter22", "sk-", "pass-word"] {
        assert!(!error.contains(secret), "{error}");
    }
}

#[test]
fn variables_override_the_file_and_are_named_in_mistakes() {
    let with = |variables: &[(&str, &str)]| LoadOptions {
        variables: Some(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()),
        ..LoadOptions::default()
    };
    let text = "server: {listen: ':8000', read_timeout: '${READ:-20s}'}\nbackends: [{url: '${URL}'}]\n";
    let variables = [
        ("LLMPROXY_SERVER__LISTEN", "127.0.0.1:9000"),
        ("LLMPROXY_RATE_LIMIT__PER_KEY__MAX_CONCURRENT", "3"),
        ("LLMPROXY_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, 192.168.1.1"),
        ("LLMPROXY_PORT", "tcp://10.0.0.1:80"),
        ("URL", "http://vllm"),
    ];
    let Loaded { config, warnings } = load_str(text, &with(&variables)).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:9000");
    assert_eq!(config.server.read_timeout.as_secs(), 20);
    assert_eq!(config.server.trusted_proxies.len(), 2);
    assert_eq!(config.rate_limit.per_key.max_concurrent, 3);
    assert_eq!(config.backends[0].url, "http://vllm");
    assert!(warnings.is_empty(), "{warnings:?}");

    let off = LoadOptions { env: false, ..with(&variables) };
    assert_eq!(load_str(text, &off).unwrap().config.server.listen, ":8000");

    let error = load_str(text, &with(&[("LLMPROXY_SERVER__IDLE_TIMEOUT", "long"), ("URL", "http://a")])).unwrap_err();
    assert!(error.to_string().contains("environment variable LLMPROXY_SERVER__IDLE_TIMEOUT"), "{error}");
    let error = load_str(text, &with(&[("LLMPROXY_BACKENDS__0__URL", "http://a")])).unwrap_err().to_string();
    assert!(error.contains("must be a list") && error.contains("LLMPROXY_BACKENDS__0__URL"), "{error}");
}

#[test]
fn a_variable_that_is_set_to_nothing_overrides_nothing() {
    let variables = Some([("LLMPROXY_AUTH__ENABLED".into(), String::new())].into());
    let text = "backends: [{url: 'http://a'}]\nauth: {enabled: true}\n";
    assert!(load_str(text, &LoadOptions { variables, ..LoadOptions::default() }).unwrap().config.auth.enabled);
}

#[test]
fn a_path_that_the_router_reads_otherwise_is_a_mistake() {
    for path in ["/:x", "/{x}", "/*x"] {
        let text = format!("backends: [{{url: 'http://a'}}]\nmetrics: {{path: '{path}'}}\n");
        assert_eq!(load_str(&text, &options()).unwrap_err().mistakes()[0].path, "metrics.path", "{path}");
    }
}

#[test]
fn a_secret_made_of_digits_keeps_its_zeros() {
    let text = "backends: [{url: 'http://a', headers: {X-Api-Key: '${KEY}'}}]";
    let variables = Some([("KEY".into(), "007".into())].into());
    let config = load_str(text, &LoadOptions { variables, ..options() }).unwrap().config;
    assert_eq!(config.backends[0].headers["X-Api-Key"], "007");
}

#[test]
fn a_file_without_a_backend_says_how_to_add_one() {
    let error = load_str("", &options()).unwrap_err().to_string();
    assert!(error.starts_with("backends: at least one") && error.contains("- url:"), "{error}");
}

#[test]
fn with_discovery_backends_may_be_left_out() {
    let text = "
discovery:
  enabled: true
  sources:
    - {type: consul, enabled: false, consul: {addr: 'consul:8500'}}
    - {type: dns, dns: {name: vllm, port: 8000}, backend: {weight: '2', timeout: 5, headers: {Authorization: t0ken}}}
    - {type: static, static: {backends: [{url: 'http://a', weight: '3'}]}}
";
    let loaded = load_str(text, &options()).unwrap();
    let sources = &loaded.config.discovery.sources;
    assert_eq!((sources.len(), sources[0].dns.port, sources[1].fixed.backends[0].weight), (2, 8000, 3));
    assert!(!format!("{:?}", sources[0]).contains("t0ken"));
}

#[test]
fn what_is_wrong_with_a_source_is_said_where_it_stands() {
    let text = "
discovery:
  enabled: true
  sources:
    - {type: consul, enabled: false}
    - {type: consul}
    - {type: static, static: {backends: [{url: a, weight: heavy}]}, backend: {flavour: 1}}
    - {type: file, backend: {weight: heavy}}
    - {type: static, name: s, static: {backends: [{url: 'https://a', ca_file: /no/such/ca.pem}]}}
";
    let error = load_str(text, &LoadOptions { strict: true, ..options() }).unwrap_err();
    let paths: Vec<&str> = error.mistakes().iter().map(|mistake| &*mistake.path).collect();
    let expected = [
        "discovery.sources[1].type",
        "discovery.sources[2].backend.flavour",
        "discovery.sources[2].static.backends[0].url",
        "discovery.sources[2].static.backends[0].weight",
        "discovery.sources[3].backend.weight",
        "discovery.sources[3].file.path",
        "discovery.sources[4].static.backends[0].ca_file",
    ];
    assert_eq!(paths, expected);
    assert!(error.to_string().contains("type: dns"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load("/no/such/config.yaml", &options()).unwrap_err().to_string();
    assert!(error.contains("/no/such/config.yaml"), "{error}");
}

#[test]
fn what_streams_need_comes_from_the_keys_that_operators_know() {
    let text = "
backends: [{url: 'http://a'}]
server: {heartbeat: 15s, max_body_size: 1MiB, read_timeout: 9s}
routing: {gap_timeout: 44s, allow_paths: [/pooling]}
";
    let config = load_str(text, &options()).unwrap().config;
    assert_eq!(config.sse.gap_timeout.as_secs(), 44);
    assert_eq!(config.sse.heartbeat.unwrap().as_secs(), 15);
    assert_eq!(config.inspect.max_body_size, 1 << 20);
    assert_eq!(config.inspect.body_gap_timeout.as_secs(), 9);
    assert_eq!(config.routing_paths.allow_paths, ["/pooling"]);
}

#[test]
fn routing_that_is_off_is_left_at_its_defaults() {
    let text = "backends: [{url: 'http://a'}]\nrouting: {enabled: false, load_balance: latency_based}\n";
    let Loaded { config, warnings } = load_str(text, &options()).unwrap();
    assert_eq!(config.routing, Default::default());
    assert_eq!(warnings[0].path, "routing.enabled");
}

#[test]
fn rules_aliases_and_fallbacks_are_read_as_they_are_written() {
    let text = "
backends:
  - {url: 'http://a', name: gpu-1, group: big, models: [qwen2.5-32b]}
  - {url: 'http://b', group: small, models: [qwen2.5-7b]}
routing:
  models:
    gpt-4: {to: qwen2.5-32b, fallbacks: qwen2.5-7b}
    qwen2.5-7b: {load_balance: least_connections}
  rules:
    - name: long
      match: {model: 'gpt-*', min_prompt_tokens: 4000, tools: yes, header: {X-Kind: batch}}
      group: big
  fallback:
    - {models: ['llama*'], primary: gpu-1, fallback: ['http://b/v1']}
";
    let Loaded { config, warnings } = load_str(text, &options()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let routing = &config.routing;
    assert_eq!(routing.models["gpt-4"].fallbacks, ["qwen2.5-7b"]);
    assert_eq!(format!("{:?}", routing.models["qwen2.5-7b"].load_balance), "Some(LeastConnections)");
    let conditions = &routing.rules[0].conditions;
    assert_eq!((conditions.min_prompt_tokens, conditions.tools), (Some(4000), Some(true)));
    assert!(conditions.header["X-Kind"].matches("batch"));
    assert_eq!(routing.fallback[0].primary.as_deref(), Some("gpu-1"));
}

#[test]
fn what_routing_names_and_no_backend_is_or_has_is_told() {
    let text = "
backends: [{url: 'http://a', group: big, models: [qwen]}]
routing:
  model_mapping: {gpt-4: qwem}
  models: {o1: qwen, o3: {to: qwen, fallbacks: [qwen]}}
  rules: [{match: {tag: '', model: a}, group: bgi}, {match: {modle: x, model: b}, group: big}, {match: {model: m}, group: ''}]
  fallback: [{primary: 'http://c', fallback: [x]}]
";
    let error = load_str(text, &LoadOptions { strict: true, ..options() }).unwrap_err();
    let paths: Vec<&str> = error.mistakes().iter().map(|mistake| mistake.path.as_str()).collect();
    let expected = [
        "routing.fallback[0].primary",
        "routing.models.o1",
        "routing.models.o3.fallbacks[0]",
        "routing.rules[0].group",
        "routing.rules[0].match.tag",
        "routing.rules[1].match.modle",
        "routing.rules[2].group",
    ];
    assert_eq!(paths, expected, "{error}");

    let text = "backends: [{url: 'http://a', models: [qwen]}]\nrouting: {model_mapping: {gpt-4: qwem}}\n";
    let warnings = load_str(text, &options()).unwrap().warnings;
    assert_eq!(warnings[0].to_string(), "routing.model_mapping.gpt-4: no backend has `qwem` among its models");
}

#[test]
fn a_pipeline_that_is_off_entry_by_entry_is_a_mistake() {
    let text = "backends: [{url: 'http://a'}]\nauth: {enabled: true, pipeline: [{type: lua, enabled: false}]}\n";
    let error = load_str(text, &options()).unwrap_err();
    assert_eq!(error.mistakes()[0].path, "auth.pipeline");
}

#[test]
fn a_pipeline_may_name_the_builtin_store() {
    let text = "backends: [{url: 'http://a'}]\nauth: {enabled: true, pipeline: [{type: builtin}]}\n";
    assert!(load_str(text, &options()).unwrap().config.auth.needs_store());
}

#[test]
fn administration_needs_an_address_that_the_api_does_not_have() {
    let check = |server: &str, admin: &str, expected: &[&str]| {
        let text = format!(
            "backends: [{{url: 'http://a'}}]\nserver: {server}\nadmin: {{enabled: true, token: t, listen: '{admin}'}}\n"
        );
        let loaded = load_str(&text, &options()).map_err(|error| error.mistakes().to_vec());
        let paths: Vec<String> = loaded.err().into_iter().flatten().map(|mistake| mistake.path).collect();
        assert_eq!(paths, expected, "{server} {admin}");
    };
    for taken in [":8000", "8000", "127.0.0.1:8000", "0.0.0.0:8000", "[::]:8000", "nowhere"] {
        check("{}", taken, &["admin.listen"]);
    }
    check("{listen: '127.0.0.1:9000'}", "127.0.0.1:9000", &["admin.listen"]);
    check("{listen: '127.0.0.1:9000'}", ":9000", &["admin.listen"]);
    check("{listeners: [{listen: ':9001'}]}", ":9001", &["admin.listen"]);
    for (server, free) in [("{}", ":8001"), ("{listen: '10.0.0.1:9000'}", "127.0.0.1:9000"), ("{listen: ':0'}", ":0")] {
        check(server, free, &[]);
    }
}
