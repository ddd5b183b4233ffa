//! Receivers that behave badly, each in its own way: no record is lost by it, and none held up for longer than it takes.

use std::time::Duration;

use llmproxy_testkit::{Backend, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    ask, ask_all, backend,
    books::{Books, Closed, Manner},
    config, reporter,
};
use crate::harness::{Folder, Proxy};

/// Ten exchanges wait for a receiver, in batches of three.
struct Setting {
    proxy: Proxy,
    client: Client,
    ids: Vec<String>,
    yaml: String,
    _backend: Backend,
    folder: Folder,
}

impl Setting {
    async fn of(url: &str, webhook: Value) -> Self {
        let (backend, folder) = (backend().await, Folder::new());
        let mut whole = json!({"batch_size": 3, "batch_interval": "20ms"});
        for (key, value) in webhook.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let yaml = config(&backend, &folder, &[reporter("r", url, &whole)]).to_string();
        let proxy = Proxy::start(&yaml).await;
        let mut client = Client::connect(proxy.address()).await;
        let ids = ask_all(&mut client, 10).await;
        Self { proxy, client, ids, yaml, _backend: backend, folder }
    }

    /// The ids of the records that are kept because no receiver took them.
    fn dead_letters(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("dead-letters.jsonl")).expect("there are some");
        let letters = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        letters.map(|letter| letter["record"]["request_id"].as_str().expect("an id").to_owned()).collect()
    }

    /// All came, in their order, and each but those of a batch that was tried before only once.
    async fn check(&self, books: &Books) {
        let told = books.wait_for(&self.ids).await;
        assert_eq!(told.order, self.ids);
        assert_eq!(told.conflicts, [""; 0]);
    }
}

#[tokio::test]
async fn one_that_refuses_connections_has_everything_when_it_listens() {
    let closed = Closed::new();
    let setting = Setting::of(&closed.url(), json!({"retry": 0})).await;
    let mut setting = setting;
    let line = setting.proxy.logged("takes no usage records").await;
    assert_eq!(line["reporter"], "r", "{line}");
    // What it was told so far makes it wait for half a minute; a new process tries at once.
    drop(setting);
    let setting = Setting::of(&closed.url(), json!({})).await;
    let books = closed.open();
    setting.check(&books).await;
}

#[tokio::test]
async fn one_that_does_not_answer_is_left_after_a_while_and_asked_again() {
    let books = Books::open();
    books.behave(Manner::Hangs);
    let setting = Setting::of(&books.url(), json!({"timeout": "200ms"})).await;
    books.asked(2).await;
    books.behave(Manner::Accepts);
    setting.check(&books).await;
}

#[tokio::test]
async fn one_that_answers_500_is_asked_again() {
    let books = Books::open();
    books.behave(Manner::Answers(500));
    let setting = Setting::of(&books.url(), json!({})).await;
    books.asked(3).await;
    books.behave(Manner::Accepts);
    setting.check(&books).await;
    assert_eq!(books.told().again, 0);
}

#[tokio::test]
async fn one_that_wants_patience_is_not_asked_before() {
    let books = Books::open();
    books.behave(Manner::Throttles(3));
    let mut setting = Setting::of(&books.url(), json!({})).await;
    books.asked(1).await;
    books.behave(Manner::Accepts);
    // Others are tried at once then.
    setting.proxy.reload(&setting.yaml, "reloaded").await;
    setting.check(&books).await;
    let requests = books.requests();
    let waited = requests[1] - requests[0];
    assert!(waited >= Duration::from_secs(3), "asked again after {waited:?}");
}

#[tokio::test]
async fn one_that_closes_in_the_middle_of_its_answer_is_told_again_and_the_same() {
    let books = Books::open();
    books.behave(Manner::ClosesMidHead);
    let setting = Setting::of(&books.url(), json!({})).await;
    books.asked(2).await;
    books.behave(Manner::Accepts);
    setting.check(&books).await;
    assert!(books.told().again > 0, "nobody knows whether it has them");
}

#[tokio::test]
async fn one_that_closes_behind_its_200_is_not_told_again() {
    let books = Books::open();
    books.behave(Manner::ClosesMidBody);
    let setting = Setting::of(&books.url(), json!({})).await;
    setting.check(&books).await;
    assert_eq!(books.told().again, 0, "it has said that it has them");
}

#[tokio::test]
async fn one_record_that_it_does_not_like_costs_no_other() {
    let books = Books::open();
    books.behave(Manner::RefusesPoison);
    let mut setting = Setting::of(&books.url(), json!({})).await;
    let (status, poison) = ask(&mut setting.client, "poison").await;
    assert_eq!(status, 200);
    setting.ids.extend(ask_all(&mut setting.client, 10).await);
    setting.check(&books).await;
    let metrics = setting.proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_webhook_failure_total", &[]), 1.0);
    assert!(!books.told().texts.contains_key(&poison));
    assert_eq!(setting.dead_letters(), [poison]);
}

#[tokio::test]
async fn one_that_takes_us_for_a_stranger_is_not_asked_for_ever_and_has_what_comes_later() {
    let books = Books::open();
    books.behave(Manner::Answers(401));
    let mut setting = Setting::of(&books.url(), json!({})).await;
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while setting.proxy.metrics().await.sum("llmproxy_webhook_failure_total", &[]) < 10.0 {
        assert!(Instant::now() < deadline, "of ten records are not given up, after {:?}", books.requests().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(setting.dead_letters(), setting.ids);
    books.behave(Manner::Accepts);
    setting.ids = ask_all(&mut setting.client, 10).await;
    setting.check(&books).await;
}
