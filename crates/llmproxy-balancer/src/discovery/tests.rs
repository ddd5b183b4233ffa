//! Which of the backends that sources have count.

use super::*;
use crate::config::{SourceConfig, SourceType};

fn backend(name: &str, url: &str) -> BackendConfig {
    BackendConfig { name: Some(name.into()), ..BackendConfig::new(url) }
}

/// Sources of which each has these.
fn sources(mode: DiscoveryMode, all: &[&[BackendConfig]]) -> Sources {
    let sources = all.iter().enumerate().map(|(index, backends)| {
        let name = Some(index.to_string());
        let mut source = SourceConfig { name, kind: Some(SourceType::Static), ..SourceConfig::default() };
        source.fixed.backends = backends.to_vec();
        source
    });
    let config = DiscoveryConfig { enabled: true, mode, sources: sources.collect(), ..DiscoveryConfig::default() };
    Sources::start(&config, &Sources::default(), &nobody(), &Weak::new())
}

fn nobody() -> HttpClient {
    HttpClient::new(tower::service_fn(async |_: http::Request<bytes::Bytes>| {
        Err::<http::Response<bytes::Bytes>, _>(llmproxy_core::BoxError::from("nobody is to be asked"))
    }))
}

fn joined(sources: &Sources, configured: &[BackendConfig]) -> Vec<String> {
    sources.join(configured).into_iter().map(|backend| backend.name.unwrap_or(backend.url)).collect()
}

#[test]
fn what_all_have_is_put_together_and_the_first_of_the_same_counts() {
    let (a, b) = (backend("a", "http://a"), backend("b", "http://b"));
    let again = backend("again", "http://a/v1/");
    let same_name = backend("b", "http://other");
    let sources = sources(DiscoveryMode::Merge, &[&[again, b], &[same_name, BackendConfig::new("http://c")]]);
    assert!(!sources.is_waiting());
    let configured = [a.clone(), backend("twin", "http://a")];
    assert_eq!(joined(&sources, &configured), ["a", "twin", "b", "http://c"]);
    assert_eq!(joined(&sources, &[]), ["again", "b", "http://c"]);
}

#[test]
fn the_first_that_has_any_is_the_only_one() {
    let [a, b, c] = ["a", "b", "c"].map(|name| backend(name, &format!("http://{name}")));
    let all: [&[BackendConfig]; 3] = [&[], &[b], &[c]];
    assert_eq!(joined(&sources(DiscoveryMode::First, &all), &[a]), ["a", "b"]);
    assert_eq!(joined(&sources(DiscoveryMode::First, &all[..1]), &[]), [""; 0]);
}

#[test]
fn what_is_off_is_not_asked() {
    let off = |enabled, source| DiscoveryConfig {
        enabled,
        sources: vec![SourceConfig { enabled: source, ..SourceConfig::default() }],
        ..DiscoveryConfig::default()
    };
    assert_eq!(Source::all(&off(true, true)).len(), 1);
    assert_eq!(Source::all(&off(false, true)).len() + Source::all(&off(true, false)).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_records_is_asked_again_soon_and_believed_after_an_interval() {
    let config = r#"{"enabled": true, "interval": "10s", "sources": [{"type": "dns", "dns": {"name": "x"}}]}"#;
    let config: DiscoveryConfig = serde_json::from_str(config).unwrap();
    let (sender, told) = watch::channel(Told::default());
    let mut asker = Asker::new(Source::all(&config).remove(0), nobody(), sender, Weak::new());
    let known = || told.borrow().backends.len();
    let bare = || Answer { is_bare: true, ..Answer::default() };
    let full = || Answer { backends: vec![backend("a", "http://a")], ..Answer::default() };
    // Where nothing was known, nothing is: that it was asked is news.
    assert_eq!(asker.answered(bare()), (Duration::from_secs(1), true));
    assert_eq!(asker.answered(full()), (Duration::from_secs(10), true));
    for wait in [1, 2, 4, 3] {
        assert_eq!(asker.answered(bare()), (Duration::from_secs(wait), false));
        assert_eq!(known(), 1);
        tokio::time::advance(Duration::from_secs(wait)).await;
    }
    assert_eq!(asker.answered(bare()), (Duration::from_secs(10), true));
    assert_eq!(known(), 0);
    // What is there again counts at once, and if it goes again, so does all of that.
    asker.answered(full());
    assert_eq!((asker.answered(bare()), known()), ((Duration::from_secs(1), false), 1));
    // A list that says that it is empty is believed.
    assert_eq!((asker.answered(Answer::default()), known()), ((Duration::from_secs(10), true), 0));
}

#[test]
fn each_source_has_its_own_time() {
    let source = |text: &str| {
        let config: DiscoveryConfig = serde_json::from_str(text).unwrap();
        Source::all(&config).remove(0)
    };
    let check = |text: &str, good_for: Option<u64>, expected: u64| {
        let answer = Answer { good_for: good_for.map(Duration::from_secs), ..Answer::default() };
        let source = source(&format!(r#"{{"enabled": true, "interval": "60s", "sources": [{text}]}}"#));
        assert_eq!(source.interval(&answer), Duration::from_secs(expected), "{text} {good_for:?}");
    };
    check(r#"{"type": "file"}"#, None, 2);
    check(r#"{"type": "file", "file": {"interval": "9s"}}"#, None, 9);
    check(r#"{"type": "http"}"#, None, 60);
    check(r#"{"type": "http", "http": {"interval": "9s"}}"#, None, 9);
    check(r#"{"type": "dns"}"#, None, 60);
    check(r#"{"type": "dns"}"#, Some(5), 5);
    check(r#"{"type": "dns"}"#, Some(300), 60);
    check(r#"{"type": "dns", "dns": {"interval": "9s"}}"#, Some(5), 9);
}

#[test]
fn a_source_without_a_name_is_called_by_what_is_asked() {
    let check = |text: &str, expected: &str| {
        let source: SourceConfig = serde_json::from_str(text).unwrap();
        assert_eq!(source.label(), expected, "{text}");
    };
    check(r#"{"type": "static"}"#, "static");
    check(r#"{"type": "file", "file": {"path": "b.yaml"}}"#, "b.yaml");
    check(r#"{"type": "dns", "dns": {"name": "vllm.internal"}}"#, "vllm.internal");
    check(r#"{"type": "http", "http": {"url": "http://registry/a?token=x"}}"#, "http://registry/a");
    check(r#"{"type": "http", "name": "n"}"#, "n");
}
