//! A client that reads slowly slows its backend, and costs the proxy little meanwhile.

use std::time::Duration;

use llmproxy_testkit::{Backend, BodyEnd, Client, Requests, Wire};
use serde_json::json;
use tokio::sync::watch;

use crate::harness::{Proxy, within};

/// So many that chance, which has one of them hold more and another less, evens out.
const STALLED: usize = 16;
/// Those before them, whose memory is not looked at.
const SHARED: usize = 3;
/// For each of them, in KiB: two pieces, which the HTTP library reads ahead of a backend and has no setting for, and what a stream
/// takes.
const MOST: u64 = 1152;
/// More than anything reads at a time, so that every buffer on the way is as large as it gets.
const PIECE: usize = 512 * 1024;
/// More than the kernel holds between three processes.
const EVENTS: usize = 128;

/// Sends all the events in a task of its own, which says how many have gone.
fn send(mut wire: Wire) -> watch::Receiver<usize> {
    let (sent, progress) = watch::channel(0);
    tokio::spawn(async move {
        let piece = format!("data: {}\n\n", "x".repeat(PIECE - "data: \n\n".len()));
        for number in 1..=EVENTS {
            wire.chunk(&piece).await.expect("the proxy keeps the connection");
            sent.send_replace(number);
        }
        wire.finish().await.expect("the proxy keeps the connection");
    });
    progress
}

/// As many clients that read no more than the head, once nothing more goes to any of them.
async fn stall(proxy: &Proxy, requests: &mut Requests, count: usize) -> Vec<Client> {
    let ask = json!({"model": "m", "stream": true, "messages": []});
    let (mut clients, mut sending) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut client = Client::connect(proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &ask).await;
        let (_, mut wire) = requests.next().await;
        wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
        assert_eq!(client.head().await.status, 200);
        clients.push(client);
        sending.push(send(wire));
    }
    let progress = || sending.iter().map(|sent| *sent.borrow()).collect::<Vec<_>>();
    let mut before = Vec::new();
    while before != progress() {
        before = progress();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(before.iter().all(|sent| *sent < EVENTS), "nothing slows the backend");
    clients
}

#[tokio::test]
async fn clients_that_do_not_read_stop_their_backends_and_cost_no_more_than_two_pieces_each() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&format!(
        "server: {{write_timeout: 5m}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
        backend.url()
    ))
    .await;
    // The first make what all others share.
    let _shared = stall(&proxy, &mut requests, SHARED).await;
    let before = proxy.memory();
    let mut clients = stall(&proxy, &mut requests, STALLED).await;
    let each = proxy.memory().saturating_sub(before) / STALLED as u64;
    assert!(each < MOST, "{each} KiB each");
    // Whoever reads again gets it all.
    let all = within("the rest", clients.pop().expect("there are some").read_to_end()).await;
    assert_eq!((all.end, all.body().len()), (BodyEnd::Complete, EVENTS * PIECE));
    assert_eq!(proxy.ended().await["end"], "complete");
}
