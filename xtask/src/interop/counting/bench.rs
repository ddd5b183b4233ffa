//! The proxy with a filter behind it, and what comes of one request.

use std::{path::Path, time::Duration};

use llmproxy_testkit::Client;
use serde_json::Value;

use super::{
    count::Count,
    filter::{Filter, STOP},
    said::{Events, Said, text_of},
};
use crate::interop::{
    rig::Rig,
    scratch::Scratch,
    server::{Counted, Server, sum},
};

const PATH: &str = "/v1/chat/completions";
/// How long the proxy may take to see that its client has left.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// How the proxy counts.
pub(super) enum Metering {
    /// By the model's tokenizer; answers whose client has left are read on, or not.
    Tokenizer { drain: bool },
    /// It asks the backend.
    AskBackend,
    /// It does not; where the backend does not tell, it estimates.
    Estimate,
}

/// The proxy, a filter, and a server.
pub(super) struct Bench {
    rig: Rig,
    filter: Filter,
}

/// What came of one request.
pub(super) struct Asked {
    pub(super) record: Value,
    /// What the server has counted, of what was forwarded.
    pub(super) told: Counted,
    /// What the client was given.
    pub(super) said: Said,
    /// The second count of the prompt, and of what the client was given.
    pub(super) counted: Counted,
}

// === impl Bench ===

impl Bench {
    pub(super) async fn start(
        proxy: &Path,
        scratch: &Scratch,
        server: &Server,
        hides: bool,
        metering: Metering,
    ) -> Result<Self, String> {
        let filter = Filter::start(server.address, hides).await;
        let metering = match metering {
            Metering::AskBackend => "ask_backend: true".to_owned(),
            Metering::Estimate => "ask_backend: false".to_owned(),
            Metering::Tokenizer { drain } => format!(
                "on_abort: {}, tokenizers: [{{models: ['{}'], file: '{}'}}]",
                if drain { "drain" } else { "delivered" },
                server.model,
                scratch.model("tokenizer.json").display()
            ),
        };
        let yaml = format!(
            "backends: [{{url: '{}', models: [{}], inject_usage: never}}]\nmetering: {{{metering}}}\n",
            filter.url(),
            server.model
        );
        let rig = Rig::start(proxy, scratch, &yaml).await?;
        Ok(Self { rig, filter })
    }

    /// Asks, and reads the answer to its end.
    pub(super) async fn ask(&mut self, request: &Value, count: &mut Count) -> Result<Asked, String> {
        let answer = self.rig.client().await.post_json(PATH, request).await;
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.text()));
        }
        let mut said = Said::default();
        if request["stream"] == true {
            answer.events().iter().for_each(|event| said.add(event));
        } else {
            said.add(&answer.json());
        }
        self.asked(answer.header("x-request-id"), said, request, count).await
    }

    /// Asks for a stream, and leaves it when so many pieces of text have come: there are no more.
    pub(super) async fn leave(&mut self, request: &Value, pieces: usize, count: &mut Count) -> Result<Asked, String> {
        let (client, id, said) = self.read(request, pieces).await?;
        client.leave();
        self.asked(id.as_deref(), said, request, count).await
    }

    /// The same, where the proxy reads on: there is more when it does.
    pub(super) async fn leave_to_be_drained(
        &mut self,
        request: &Value,
        pieces: usize,
        count: &mut Count,
    ) -> Result<Asked, String> {
        let (client, id, said) = self.read(request, pieces).await?;
        client.leave();
        self.when_drained().await?;
        self.filter.go_on();
        self.asked(id.as_deref(), said, request, count).await
    }

    /// How far the proxy's own counts were off: how many were how far, by kind.
    pub(super) async fn drift(&self) -> String {
        let metrics = self.metrics().await;
        let of = |kind: &str| {
            let begin = format!("llmproxy_usage_drift_tokens_bucket{{kind=\"{kind}\",le=\"");
            let mut before = 0;
            let counts = metrics.lines().filter_map(|line| {
                let (bound, count) = line.strip_prefix(&begin)?.split_once("\"} ")?;
                let count: u64 = count.parse().ok()?;
                let here = count - before;
                before = count;
                (here > 0).then(|| format!("{here} up to {bound}"))
            });
            format!("{kind}: {}", counts.collect::<Vec<_>>().join(", "))
        };
        [of("prompt"), of("completion")].join("; ")
    }

    async fn read(&self, request: &Value, pieces: usize) -> Result<(Client, Option<String>, Said), String> {
        let mut client = self.rig.client().await;
        client.send_json(PATH, &[(STOP, &pieces.to_string())], request).await;
        let id = client.head().await.header("x-request-id").map(str::to_owned);
        let (mut said, mut events, mut read) = (Said::default(), Events::default(), 0);
        while read < pieces {
            let piece = client.piece().await.ok_or("the stream ended before it was left")?;
            for json in events.push(&piece).iter().filter_map(|event| Events::json(event)) {
                read += usize::from(!text_of(&json).is_empty());
                said.add(&json);
            }
        }
        Ok((client, id, said))
    }

    async fn asked(
        &mut self,
        id: Option<&str>,
        said: Said,
        request: &Value,
        count: &mut Count,
    ) -> Result<Asked, String> {
        let id = id.ok_or("an answer without an id")?;
        let record = self.rig.record(id).await?;
        let told = self.filter.told(id)?;
        let mut counted = Counted { prompt: count.chat(request).await?, completion: 0 };
        for text in said.texts.values() {
            counted.completion += count.answer(text).await?;
        }
        Ok(Asked { record, told, said, counted })
    }

    /// Waits until the proxy has seen that the client has left.
    async fn when_drained(&self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while sum(&self.metrics().await, "llmproxy_drains_running") == 0 {
            if tokio::time::Instant::now() > deadline {
                return Err("nothing is read on".into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn metrics(&self) -> String {
        self.rig.client().await.get("/metrics").await.text()
    }
}
