//! Backends that are found: what a source tells is in force, and what it does not tell changes nothing.

mod common;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{Proxy, Reply, answer, refused, text};
use http::{Request, Response};
use llmproxy_balancer::{
    BackendConfig, BalanceError, Balancer, DiscoveryConfig, FallbackConfig, FileSourceConfig, HealthCheckConfig,
    HttpSourceConfig, QueueConfig, RoutingConfig, SourceConfig, SourceType,
};
use llmproxy_core::{BoxError, HttpClient, RequestBody, cause_ref};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower::service_fn;

/// A server that lists backends, until it is told to do something else.
#[derive(Clone)]
struct Registry(Arc<Mutex<State>>);

struct State {
    /// None: it refuses connections.
    list: Option<(u16, String)>,
    takes: Duration,
    asked: Vec<Instant>,
}

impl Registry {
    fn new(list: &str) -> Self {
        let state = State { list: Some((200, list.to_owned())), takes: Duration::ZERO, asked: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn answers(&self, status: u16, list: &str) {
        self.0.lock().expect("no test panics in here").list = Some((status, list.to_owned()));
    }

    fn refuses(&self) {
        self.0.lock().expect("no test panics in here").list = None;
    }

    fn takes(self, takes: Duration) -> Self {
        self.0.lock().expect("no test panics in here").takes = takes;
        self
    }

    fn asked(&self) -> usize {
        self.0.lock().expect("no test panics in here").asked.len()
    }

    fn client(&self) -> HttpClient {
        let state = self.0.clone();
        HttpClient::new(service_fn(move |request: Request<Bytes>| {
            let state = state.clone();
            async move {
                assert_eq!(request.headers()["x-token"], "secret");
                let takes = {
                    let mut state = state.lock().expect("no test panics in here");
                    state.asked.push(Instant::now());
                    state.takes
                };
                sleep(takes).await;
                let (status, list) = state.lock().expect("no test panics in here").list.clone().ok_or_else(refused)?;
                Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::from(list)).expect("a good status"))
            }
        }))
    }
}

fn http() -> SourceConfig {
    let headers = [("x-token".into(), "secret".into())].into();
    let http = HttpSourceConfig { url: "http://registry/backends".into(), headers, ..HttpSourceConfig::default() };
    SourceConfig { kind: Some(SourceType::Http), http, ..SourceConfig::default() }
}

fn discovery(sources: Vec<SourceConfig>) -> DiscoveryConfig {
    DiscoveryConfig { enabled: true, sources, ..DiscoveryConfig::default() }
}

fn apply(balancer: &Balancer, backends: &[BackendConfig]) {
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(backends, &RoutingConfig::default(), &health, &QueueConfig::default());
}

/// Puts a configuration in force, as the stack does.
async fn start(balancer: &Balancer, discovery: &DiscoveryConfig, backends: &[BackendConfig]) {
    let sources = balancer.discover(discovery).await;
    balancer.follow(sources);
    apply(balancer, backends);
}

fn names(balancer: &Balancer) -> Vec<String> {
    balancer.pool().backends().iter().map(|backend| backend.name.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_server_lists_is_in_force_and_what_it_does_not_say_changes_nothing() {
    let registry = Registry::new(r#"["http://a", {"url": "http://b", "status": "disabled"}]"#);
    let balancer = Balancer::new(registry.client());
    let configured = [BackendConfig::new("http://fixed")];
    start(&balancer, &discovery(vec![http()]), &configured).await;
    assert_eq!(names(&balancer), ["http://fixed", "http://a"]);

    registry.answers(200, r#"{"services": ["http://b", "nonsense"]}"#);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(names(&balancer), ["http://fixed", "http://b"]);

    for (status, list) in [(500, "[]"), (404, "[]"), (302, "[]"), (200, "<html>"), (200, r#"{"error": "x"}"#)] {
        registry.answers(status, list);
        sleep(Duration::from_secs(31)).await;
        assert_eq!(names(&balancer), ["http://fixed", "http://b"], "{status} {list}");
    }
    registry.refuses();
    sleep(Duration::from_secs(31)).await;
    assert_eq!(names(&balancer), ["http://fixed", "http://b"]);

    // That there is none is a proper answer.
    registry.answers(200, "[]");
    sleep(Duration::from_secs(31)).await;
    assert_eq!(names(&balancer), ["http://fixed"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_asked_again_soon_and_then_as_often_as_it_is_said() {
    let registry = Registry::new("[]");
    registry.refuses();
    let balancer = Balancer::new(registry.client());
    let began = Instant::now();
    start(&balancer, &discovery(vec![http()]), &[]).await;
    // A source that fails is not waited for.
    assert_eq!(began.elapsed(), Duration::ZERO);
    sleep(Duration::from_secs(200)).await;
    let asked = registry.0.lock().unwrap().asked.clone();
    let seconds: Vec<u64> = asked.iter().map(|at| at.duration_since(began).as_secs()).collect();
    assert_eq!(seconds, [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181]);
}

#[tokio::test(start_paused = true)]
async fn a_new_source_is_waited_for_but_not_for_long() {
    let registry = Registry::new(r#"["http://a"]"#).takes(Duration::from_secs(2));
    let balancer = Balancer::new(registry.client());
    let began = Instant::now();
    start(&balancer, &discovery(vec![http()]), &[]).await;
    assert_eq!((began.elapsed(), names(&balancer)), (Duration::from_secs(2), vec!["http://a".to_owned()]));

    let registry = Registry::new(r#"["http://a"]"#).takes(Duration::from_secs(4));
    let balancer = Balancer::new(registry.client());
    let began = Instant::now();
    start(&balancer, &discovery(vec![http()]), &[]).await;
    assert_eq!((began.elapsed(), names(&balancer).len()), (Duration::from_secs(3), 0));

    // Whoever comes before the answer waits for it.
    let proxy = Proxy::new(balancer.pool().clone(), |target| Reply::Answer(answer(200, &target.backend.name)));
    let (_, response) = proxy.ask_with(None, RequestBody::whole("{}")).await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "http://a");
    assert_eq!(began.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_there_are_no_backends_is_told_to_come_back() {
    let registry = Registry::new("[]").takes(Duration::from_secs(9));
    let balancer = Balancer::new(registry.client());
    start(&balancer, &discovery(vec![http()]), &[]).await;
    let proxy = Proxy::new(balancer.pool().clone(), |_| Reply::Answer(answer(200, "")));
    let asked = Instant::now();
    let (_, response) = proxy.ask().await;
    let error = response.unwrap_err();
    let error = cause_ref::<BalanceError>(&*error).expect("one of ours");
    assert_eq!((error.code(), asked.elapsed()), ("no_backend", Duration::from_secs(2)));
    assert!(error.retry_after().is_some());
    // It is known now that there are none, so nobody waits any more.
    sleep(Duration::from_secs(10)).await;
    let asked = Instant::now();
    assert!(proxy.ask().await.1.is_err());
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_reload_goes_on_with_the_sources_that_stay_the_same_and_ends_the_others() {
    let registry = Registry::new(r#"["http://a"]"#);
    let balancer = Balancer::new(registry.client());
    start(&balancer, &discovery(vec![http()]), &[]).await;
    registry.refuses();
    start(&balancer, &discovery(vec![http()]), &[BackendConfig::new("http://b")]).await;
    assert_eq!((names(&balancer), registry.asked()), (vec!["http://b".to_owned(), "http://a".to_owned()], 1));

    // One that is not put in force after all is asked no more.
    let mut other = http();
    other.http.interval = Some(Duration::from_secs(1));
    other.name = Some("other".into());
    drop(balancer.discover(&discovery(vec![other])).await);
    let asked = registry.asked();
    sleep(Duration::from_secs(20)).await;
    assert_eq!((registry.asked(), asked), (asked, 2));

    start(&balancer, &DiscoveryConfig::default(), &[BackendConfig::new("http://b")]).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!((names(&balancer), registry.asked()), (vec!["http://b".to_owned()], asked));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_asked_otherwise_has_what_it_had_until_it_answers() {
    let registry = Registry::new(r#"["http://a"]"#);
    let balancer = Balancer::new(registry.client());
    start(&balancer, &discovery(vec![http()]), &[]).await;
    registry.refuses();
    let mut changed = http();
    changed.http.interval = Some(Duration::from_secs(5));
    start(&balancer, &discovery(vec![changed]), &[]).await;
    assert_eq!((names(&balancer), registry.asked()), (vec!["http://a".to_owned()], 2));
    registry.answers(200, r#"["http://b"]"#);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(names(&balancer), ["http://b"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_is_known_for_outlives_what_is_found_beside_it() {
    let registry = Registry::new(r#"[{"url": "http://a", "models": ["m"]}]"#);
    let balancer = Balancer::new(registry.client());
    start(&balancer, &discovery(vec![http()]), &[]).await;
    let proxy = Proxy::new(balancer.pool().clone(), |_| Reply::Answer(answer(200, "")));
    let held = proxy.ask().await.1.unwrap();
    registry.answers(200, r#"[{"url": "http://b", "models": ["m"]}, {"url": "http://a", "models": ["m"]}]"#);
    sleep(Duration::from_secs(31)).await;
    assert_eq!((names(&balancer), proxy.in_flight()), (vec!["http://b".to_owned(), "http://a".to_owned()], vec![0, 1]));
    drop(held);
    assert_eq!(proxy.in_flight(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_meant_for_a_backend_that_a_source_lost_goes_to_nobody_else() {
    const THERE: &str = r#"[{"name": "a", "url": "http://a", "models": ["m"]}]"#;
    for primary in ["a", "http://a"] {
        let registry = Registry::new(THERE);
        let balancer = Balancer::new(registry.client());
        let named = |name: &str, models: &[&str]| BackendConfig {
            name: Some(name.into()),
            models: models.iter().map(|&model| model.into()).collect(),
            ..BackendConfig::new(format!("http://{name}"))
        };
        // One of those that are not named has the model, and one takes every name.
        let backends = [named("any", &["*"]), named("other", &["m"]), named("b", &["m"])];
        balancer.follow(balancer.discover(&discovery(vec![http()])).await);
        let entry =
            FallbackConfig { models: vec!["m".into()], primary: Some(primary.into()), fallback: vec!["b".into()] };
        let routing = RoutingConfig { fallback: vec![entry], ..RoutingConfig::default() };
        let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
        let pool = balancer.apply(&backends, &routing, &health, &QueueConfig::default());
        let proxy = Proxy::new(pool, |target| Reply::Answer(answer(200, &target.backend.name)));
        for (list, expected) in [(THERE, "a"), ("[]", "b"), (THERE, "a")] {
            registry.answers(200, list);
            sleep(Duration::from_secs(31)).await;
            for _ in 0..4 {
                let (_, response) = proxy.ask_with(Some("m"), RequestBody::whole("{}")).await;
                assert_eq!(text(response.unwrap()).await.unwrap(), expected, "{primary} {list}");
            }
        }
    }
}

/// A file of the test's own; removed when dropped.
struct TestFile(PathBuf);

impl TestFile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("llmproxy-discovery-{}-{name}", std::process::id())))
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).expect("the folder is ours");
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_of_certificates_is_read_with_a_configuration_and_not_when_others_are_found() {
    let file = TestFile::new("ca.pem");
    file.write("first");
    let registry = Registry::new(r#"["http://a"]"#);
    let balancer = Balancer::new(registry.client());
    let configured = [BackendConfig { ca_file: Some(file.0.clone()), ..BackendConfig::new("https://fixed") }];
    let known = || -> (Vec<String>, Option<Arc<[u8]>>) { (names(&balancer), balancer.pool().backends()[0].ca.clone()) };
    let expect = |name: &str, pem: &str| (vec!["https://fixed".into(), name.into()], Some(pem.as_bytes().into()));
    start(&balancer, &discovery(vec![http()]), &configured).await;
    assert_eq!(known(), expect("http://a", "first"));

    // A backend that works does not go with its file.
    std::fs::remove_file(&file.0).expect("it is there");
    registry.answers(200, r#"["http://b"]"#);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(known(), expect("http://b", "first"));
    apply(&balancer, &configured);
    assert_eq!(known(), expect("http://b", "first"));

    // Nor with one that is half written.
    balancer.check_authorities(|pem| if pem.is_empty() { Err("has nothing in it".into()) } else { Ok(()) });
    file.write("");
    apply(&balancer, &configured);
    assert_eq!(known(), expect("http://b", "first"));

    file.write("second");
    registry.answers(200, r#"["http://c"]"#);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(known(), expect("http://c", "first"));
    apply(&balancer, &configured);
    assert_eq!(known(), expect("http://c", "second"));
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes() {
    let file = TestFile::new("backends.yaml");
    file.write("# two\n- http://a\n- url: http://b\n  weight: 2\n  models: [m]\n");
    let interval = Duration::from_millis(5);
    let source = SourceConfig {
        kind: Some(SourceType::File),
        file: FileSourceConfig { path: file.0.clone(), interval },
        ..SourceConfig::default()
    };
    let balancer = Balancer::new(Registry::new("[]").client());
    let (changed, mut changes) = mpsc::channel(8);
    balancer.on_change(move |backends| {
        let names: Vec<String> = backends.iter().map(|backend| backend.name.to_string()).collect();
        changed.try_send(names).expect("few changes");
    });
    let mut next =
        async || timeout(Duration::from_secs(10), changes.recv()).await.expect("a change").expect("it lives");
    start(&balancer, &discovery(vec![source]), &[]).await;
    assert_eq!(next().await, ["http://a", "http://b"]);
    // What can't be read keeps what was read, and so does a file that is gone.
    file.write("backends: [http://a");
    file.write("");
    std::fs::remove_file(&file.0).expect("it is there");
    file.write("{\"backends\": [\n\t\"http://c\"]}");
    assert_eq!(next().await, ["http://c"]);
    file.write("[]");
    assert_eq!(next().await, [""; 0]);
}
