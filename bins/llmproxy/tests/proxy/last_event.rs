//! A stream that is over before its connection is: what a backend does behind the last event takes nothing from it.

use llmproxy_testkit::{Backend, BodyEnd, Client, Receiver, Requests};
use serde_json::json;

use crate::harness::Proxy;

const EVENTS: &str = "text/event-stream";

/// What a backend does in the place of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    Stay,
    Close,
    Reset,
}

/// A path, the type of its stream, all of it but the end, and its last event.
type Stream = (&'static str, &'static str, &'static str, &'static str);

const CHAT: Stream = (
    "/v1/chat/completions",
    EVENTS,
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n",
    "data: [DONE]\n\n",
);
const MESSAGES: Stream = (
    "/v1/messages",
    EVENTS,
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":1}}}\n\n\
     event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":2}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
);
const RESPONSES: Stream = (
    "/v1/responses",
    EVENTS,
    "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
    "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":2}}}\n\n",
);
const INCOMPLETE: Stream = (
    RESPONSES.0,
    EVENTS,
    RESPONSES.2,
    "event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":2}}}\n\n",
);

const LINES: Stream = (
    "/api/chat",
    "application/x-ndjson",
    "{\"message\":{\"content\":\"a\"},\"done\":false}\n",
    "{\"message\":{\"content\":\"\"},\"done\":true,\"prompt_eval_count\":7,\"eval_count\":2}\n",
);

/// A proxy before one backend, and where its records go.
struct Rig {
    proxy: Proxy,
    requests: Requests,
    receiver: Receiver,
    _backend: Backend,
}

impl Rig {
    /// With a backend that is out after so many failures.
    async fn start(threshold: u32) -> Self {
        let (backend, requests) = Backend::stepped().await;
        let receiver = Receiver::start().await;
        let reporter = json!({"name": "r", "type": "webhook", "webhook": {"url": receiver.url()}});
        let yaml = json!({
            "server": {"heartbeat": "300ms"},
            "backends": [{"name": "b", "url": backend.url(), "models": ["m"]}],
            "routing": {"gap_timeout": "1s"},
            "health_check": {"enabled": false, "unhealthy_threshold": threshold},
            "usage": {"enabled": true, "reporters": [reporter]},
        });
        Self { proxy: Proxy::start(&yaml.to_string()).await, requests, receiver, _backend: backend }
    }

    /// Plays `stream` up to its last event, and then `instead`. The client must have had all, nothing else, and a clean end.
    async fn play(&mut self, (path, kind, text, last): Stream, instead: Instead) {
        let mut client = Client::connect(self.proxy.address()).await;
        client.send_json(path, &[], &json!({"model": "m", "stream": true, "messages": [], "input": "a"})).await;
        let (_, mut wire) = self.requests.next().await;
        wire.head(200, &[("content-type", kind)]).await.expect("the proxy reads");
        wire.chunk(text).await.expect("the proxy reads");
        client.expect_piece(text).await;
        // In two pieces, as it may come. The first may wait for the second: it could be the usage that the proxy asked for.
        let (first, second) = last.split_at(last.len() - 3);
        wire.chunk(first).await.expect("the proxy reads");
        wire.chunk(second).await.expect("the proxy reads");
        let mut passed = String::new();
        while passed != last {
            let piece = client.piece().await.unwrap_or_else(|| panic!("{path} ended after {passed}"));
            passed.push_str(std::str::from_utf8(&piece).expect("text"));
            assert!(last.starts_with(&passed), "{path}: {passed}");
        }
        match instead {
            Instead::Stay => {}
            Instead::Close => wire.close().await,
            Instead::Reset => wire.reset(),
        }
        let rest = client.read_to_end().await;
        assert_eq!((rest.text().as_str(), rest.end), ("", BodyEnd::Complete), "{path} {last} {instead:?}");
        assert_eq!(self.proxy.ended().await["end"], "complete", "{path} {last} {instead:?}");
    }

    async fn check_records(&self, count: usize) {
        for record in &self.receiver.wait_for(count).await {
            assert_eq!((&record["end"], &record["usage_source"]), (&json!("complete"), &json!("backend")), "{record}");
            assert_eq!((&record["prompt_tokens"], &record["completion_tokens"]), (&json!(7), &json!(2)), "{record}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_complete_with_its_last_event_whatever_its_backend_does_then() {
    let mut rig = Rig::start(1).await;
    for stream in [CHAT, MESSAGES, RESPONSES, INCOMPLETE] {
        for instead in [Instead::Stay, Instead::Close, Instead::Reset] {
            rig.play(stream, instead).await;
        }
    }
    rig.check_records(12).await;
    let metrics = rig.proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_backend_up", &["\"b\""]), 1.0, "none of it was a failure");
    for none in ["llmproxy_upstream_timeouts_total", "llmproxy_broken_streams_total", "llmproxy_in_flight"] {
        assert_eq!(metrics.sum(none, &[]), 0.0, "{none}");
    }
}

#[tokio::test]
async fn so_are_lines_with_the_last_one() {
    let mut rig = Rig::start(9).await;
    for instead in [Instead::Stay, Instead::Close, Instead::Reset] {
        rig.play(LINES, instead).await;
    }
    rig.check_records(3).await;
}
