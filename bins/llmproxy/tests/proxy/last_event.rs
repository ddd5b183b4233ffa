//! A stream that is over before its connection is: what a backend does behind the last event takes nothing from it.

use llmproxy_testkit::{Backend, BodyEnd, Client, Receiver};
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

/// A proxy that takes a backend out at its first failure.
fn config(backend: &Backend, receiver: &Receiver) -> String {
    let yaml = json!({
        "server": {"heartbeat": "300ms"},
        "backends": [{"name": "b", "url": backend.url(), "models": ["m"]}],
        "routing": {"gap_timeout": "1s"},
        "health_check": {"enabled": false, "unhealthy_threshold": 1},
        "usage": {"enabled": true, "reporters": [{"name": "r", "type": "webhook", "webhook": {"url": receiver.url()}}]},
    });
    yaml.to_string()
}

#[tokio::test]
async fn a_stream_is_complete_with_its_last_event_whatever_its_backend_does_then() {
    let (backend, mut requests) = Backend::stepped().await;
    let receiver = Receiver::start().await;
    let mut proxy = Proxy::start(&config(&backend, &receiver)).await;
    for ((path, kind, text, last), instead) in [CHAT, MESSAGES, RESPONSES, INCOMPLETE]
        .into_iter()
        .flat_map(|stream| [Instead::Stay, Instead::Close, Instead::Reset].map(|instead| (stream, instead)))
    {
        let mut client = Client::connect(proxy.address()).await;
        client.send_json(path, &[], &json!({"model": "m", "stream": true, "messages": [], "input": "a"})).await;
        let (_, mut wire) = requests.next().await;
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
        assert_eq!(proxy.ended().await["end"], "complete", "{path} {last} {instead:?}");
    }
    let records = receiver.wait_for(12).await;
    for record in &records {
        assert_eq!((&record["end"], &record["usage_source"]), (&json!("complete"), &json!("backend")), "{record}");
        assert_eq!((&record["prompt_tokens"], &record["completion_tokens"]), (&json!(7), &json!(2)), "{record}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_backend_up", &["\"b\""]), 1.0);
    for none in ["llmproxy_upstream_timeouts_total", "llmproxy_broken_streams_total", "llmproxy_in_flight"] {
        assert_eq!(metrics.sum(none, &[]), 0.0, "{none}");
    }
}
