//! Servers that batch, read prompts one after the other and remember them: where requests go, and what that saves.

use llmproxy_testkit::{Client, ModelServer, ModelServerBuilder};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::Proxy;

/// Words of a system prompt: enough that it matters where it was read.
const SYSTEM: usize = 800;

fn builder(prefill_rate: f64) -> ModelServerBuilder {
    ModelServer::builder().words_per_second(f64::INFINITY).prefill_rate(prefill_rate).cache(100_000)
}

async fn server(prefill_rate: f64) -> ModelServer {
    builder(prefill_rate).start().await.expect("a free port")
}

fn yaml(servers: &[&ModelServer], more: &str) -> String {
    let backends: Vec<String> = servers.iter().map(|server| format!("{{url: '{}'}}", server.url())).collect();
    format!("backends: [{}]\n{more}", backends.join(", "))
}

/// Text of so many words that no other seed has.
fn words(seed: usize, count: usize) -> String {
    (0..count).map(|at| format!("w{seed}x{at}")).collect::<Vec<_>>().join(" ")
}

async fn ask(client: &mut Client, messages: &[Value]) -> String {
    let ask = json!({"model": "demo", "messages": messages, "max_tokens": 20});
    let answer = client.post_json("/v1/chat/completions", &ask).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

/// What is said in one conversation.
struct Conversation {
    client: Client,
    number: usize,
    messages: Vec<Value>,
    /// Words of its prompts.
    asked: usize,
}

impl Conversation {
    async fn begin(proxy: &Proxy, number: usize) -> Self {
        let client = Client::connect(proxy.address()).await;
        let messages = vec![json!({"role": "system", "content": words(number, SYSTEM)})];
        let mut conversation = Self { client, number, messages, asked: 0 };
        conversation.turns(1).await;
        conversation
    }

    async fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            let question = words(1000 * (self.number + 1) + self.messages.len(), 40);
            self.messages.push(json!({"role": "user", "content": question}));
            let text = |message: &Value| message["content"].as_str().map_or(0, |text| text.split_whitespace().count());
            self.asked += self.messages.iter().map(text).sum::<usize>();
            let said = ask(&mut self.client, &self.messages).await;
            self.messages.push(json!({"role": "assistant", "content": said}));
        }
    }
}

/// Whole conversations; how many words of their prompts there were. They begin one after the other, since who comes while
/// the long beginnings of others are read may well be better off elsewhere, and go on all at a time.
async fn converse(proxy: &Proxy, conversations: usize, turns: usize) -> usize {
    let mut all = JoinSet::new();
    let mut begun = Vec::new();
    for number in 0..conversations {
        begun.push(Conversation::begin(proxy, number).await);
    }
    for mut conversation in begun {
        all.spawn(async move {
            conversation.turns(turns - 1).await;
            conversation.asked
        });
    }
    all.join_all().await.into_iter().sum()
}

#[tokio::test]
async fn a_conversation_stays_where_it_was_read_and_conversations_spread() {
    let (a, b) = (server(100_000.0).await, server(100_000.0).await);
    let proxy = Proxy::start(&yaml(&[&a, &b], "")).await;
    let (conversations, turns) = (8, 5);
    let asked = converse(&proxy, conversations, turns).await;
    let cached = (a.cached() + b.cached()) as usize;
    // What is new in each turn is some 60 words, and blocks that are not whole. All else was read before, by somebody.
    let new = conversations * (SYSTEM + turns * 60 + turns * 5 * 16);
    assert!(cached + new >= asked, "{cached} of {asked} words were found, {new} were new");
    let [a, b] = [&a, &b].map(|server| server.counts().requests);
    assert!(a.min(b) * 4 > a.max(b), "{a} and {b}");
}

#[tokio::test]
async fn in_turn_a_conversation_is_read_again_by_each_server() {
    let (a, b) = (server(100_000.0).await, server(100_000.0).await);
    let proxy = Proxy::start(&yaml(&[&a, &b], "routing: {load_balance: round_robin}\n")).await;
    // One after the other, so that its turns alternate.
    let asked = converse(&proxy, 1, 4).await;
    let cached = (a.cached() + b.cached()) as usize;
    assert!(cached < asked - 2 * SYSTEM, "{cached} of {asked}: each of the two has read the beginning");
}

#[tokio::test]
async fn affinity_yields_where_there_is_no_room() {
    let slow = ModelServer::builder().words_per_second(20.0).cache(100_000).start().await.expect("a free port");
    let other = server(100_000.0).await;
    let yaml = format!(
        "backends: [{{url: '{}', max_concurrent: 1, tier: 0}}, {{url: '{}', tier: 1}}]\n",
        slow.url(),
        other.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let system = json!({"role": "system", "content": words(1, SYSTEM)});
    let turn = json!([system, {"role": "user", "content": "one"}]);
    client.send_json("/v1/chat/completions", &[], &json!({"model": "demo", "messages": turn, "stream": true})).await;
    client.piece().await.expect("its first word");
    // All of this is in the first one's cache, and that one is full.
    ask(&mut Client::connect(proxy.address()).await, &[system, json!({"role": "user", "content": "two"})]).await;
    assert_eq!((slow.cached(), other.counts().in_progress), (0, 0));
    assert!(other.generated() > 0);
}

#[tokio::test]
async fn a_slow_server_gets_less_than_its_turn() {
    let (slow, fast) = (server(400.0).await, server(8000.0).await);
    for policy in ["prefix_aware", "least_tokens", "latency_based"] {
        let before = [&slow, &fast].map(|server| server.generated());
        let proxy = Proxy::start(&yaml(&[&slow, &fast], &format!("routing: {{load_balance: {policy}}}\n"))).await;
        let mut clients = JoinSet::new();
        for number in 0..6 {
            let address = proxy.address();
            clients.spawn(async move {
                let mut client = Client::connect(address).await;
                for turn in 0..6 {
                    let text = words(100_000 + 100 * number + turn, 100);
                    ask(&mut client, &[json!({"role": "user", "content": text})]).await;
                }
            });
        }
        clients.join_all().await;
        let [to_slow, to_fast] = [(&slow, before[0]), (&fast, before[1])].map(|(server, was)| server.generated() - was);
        assert!(to_slow * 2 < to_fast, "{policy}: {to_slow} words by the slow one, {to_fast} by the fast one");
    }
}

#[tokio::test]
async fn nobody_waits_behind_a_prompt_that_is_long() {
    for policy in ["prefix_aware", "least_tokens"] {
        let servers = [server(2000.0).await, server(2000.0).await];
        let more = format!("routing: {{load_balance: {policy}}}\n");
        let proxy = Proxy::start(&yaml(&[&servers[0], &servers[1]], &more)).await;
        let mut long = Client::connect(proxy.address()).await;
        // Three seconds to be read.
        let text = json!([{"role": "user", "content": words(0, 6000)}]);
        long.send_json("/v1/chat/completions", &[], &json!({"model": "demo", "messages": text, "max_tokens": 20}))
            .await;
        let busy = tokio::select! {
            _ = servers[0].when(|counts| counts.in_progress == 1) => 0,
            _ = servers[1].when(|counts| counts.in_progress == 1) => 1,
        };
        let mut client = Client::connect(proxy.address()).await;
        for number in 1..6 {
            ask(&mut client, &[json!({"role": "user", "content": words(number, 5)})]).await;
        }
        let busy = (servers[busy].counts().in_progress, servers[busy].generated());
        assert_eq!(busy, (1, 0), "{policy}: some were sent behind the long one");
        assert_eq!(long.read_to_end().await.status, 200);
    }
}

#[tokio::test]
async fn a_server_that_goes_takes_no_conversation_with_it_and_gets_new_ones_when_it_is_back() {
    let (stays, goes) = (server(100_000.0).await, server(100_000.0).await);
    let address = goes.addr();
    let mut proxy = Proxy::start(&format!(
        "backends: [{{url: '{}'}}, {{name: goes, url: '{}'}}]\nhealth_check: {{interval: 1s, slow_start: 0s}}\n",
        stays.url(),
        goes.url()
    ))
    .await;
    proxy.up("goes").await;
    let mut conversations = Vec::new();
    for number in 0..4 {
        conversations.push(Conversation::begin(&proxy, number).await);
    }
    assert!(goes.generated() > 0);
    drop(goes);
    for conversation in &mut conversations {
        conversation.turns(2).await;
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_backend_up", &["goes"]), 0.0);
    let back = builder(100_000.0).listen(address).await.expect("its port is free again");
    proxy.up("goes").await;
    for conversation in &mut conversations {
        conversation.turns(1).await;
    }
    assert_eq!(back.generated(), 0, "all are where they were read last");
    for number in 4..8 {
        Conversation::begin(&proxy, number).await;
    }
    assert!(back.generated() > 0);
}
