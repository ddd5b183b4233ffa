//! All reporters, over all reloads.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use llmproxy_core::HttpClient;

use crate::{
    Report, ReporterConfig, UsageConfig,
    config::MAX_QUEUE_SIZE,
    pending::Outstanding,
    reporter::{Identity, Origin, Reporter},
    webhook::{Webhook, WebhookReport},
};

/// All reporters. Long-lived: made once, told of each new configuration, and flushed at the end.
///
/// A reporter is known by its name and URL. One that a new configuration has too keeps its queue and sends what is in it
/// as it is told now; one that it does not have takes no new requests, but sends what it has and what it was promised.
#[derive(Debug)]
pub struct Reporters {
    client: HttpClient,
    own: Vec<Arc<dyn Report>>,
    active: RwLock<Arc<Active>>,
    outstanding: Arc<Outstanding>,
}

/// What the current configuration has.
#[derive(Debug, Default)]
pub(crate) struct Active {
    pub(crate) reporters: Vec<Arc<Reporter>>,
    pub(crate) admit_timeout: Duration,
}

// === impl Reporters ===

impl Reporters {
    /// No reporters yet; they will send through `client`.
    pub fn new(client: HttpClient) -> Arc<Self> {
        Self::with_own(client, Vec::new())
    }

    /// The same, and besides those of the configuration there are `own`, from the first [`apply`](Self::apply) on. They
    /// are in use whatever the configuration says, `enabled: false` included; the size of their queues and the wait
    /// for a place are the configuration's.
    pub fn with_own(client: HttpClient, own: Vec<Arc<dyn Report>>) -> Arc<Self> {
        Arc::new(Self { client, own, active: RwLock::default(), outstanding: Arc::default() })
    }

    /// Becomes what `config` says. A reporter that [`UsageConfig::validate`] has a complaint about is left out, with a
    /// line in the log.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn apply(&self, config: &UsageConfig) {
        let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
        // Nobody has checked the size where reports are off, and there may be reporters all the same.
        let queue_size = config.queue_size.clamp(1, MAX_QUEUE_SIZE);
        let mut wanted: Vec<(Arc<str>, Origin, Arc<dyn Report>)> = Vec::new();
        for (index, report) in self.own.iter().enumerate() {
            wanted.push((report.name().into(), Origin::Own(index), report.clone()));
        }
        for reporter in config.active() {
            let webhook = match Webhook::compile(&reporter.webhook) {
                Ok(webhook) => webhook,
                Err(wrong) => {
                    tracing::error!(reporter = reporter.name, ?wrong, "a usage reporter can't be used and is left out");
                    continue;
                }
            };
            let (name, origin) = (name(reporter, &webhook), Origin::Webhook(webhook.url.clone()));
            let report = WebhookReport { name: name.clone(), webhook, client: self.client.clone() };
            wanted.push((name, origin, Arc::new(report)));
        }
        let known = &active.reporters;
        let reporters = wanted.into_iter().map(|(name, origin, report)| {
            let identity = Identity { name, origin, queue_size };
            match known.iter().find(|known| known.identity == identity) {
                Some(same) => {
                    same.set_report(report);
                    same.clone()
                }
                None => Reporter::start(identity, report, self.outstanding.clone()),
            }
        });
        *active = Arc::new(Active { reporters: reporters.collect(), admit_timeout: config.admit_timeout });
    }

    /// Records that are not delivered yet and not given up.
    pub fn pending(&self) -> usize {
        self.outstanding.records()
    }

    /// Waits until every record is delivered or given up, for `deadline` at most. Returns how many are left. Meanwhile no
    /// record waits for others to go with it in a batch.
    ///
    /// # Cancel safety
    ///
    /// It only waits: delivery goes on without it.
    pub async fn flush(&self, deadline: Duration) -> usize {
        // Over in time or not: there is a number to return.
        let _ = tokio::time::timeout(deadline, self.outstanding.none()).await;
        self.pending()
    }

    pub(crate) fn active(&self) -> Arc<Active> {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Never the whole URL, which may hold a token.
fn name(config: &ReporterConfig, webhook: &Webhook) -> Arc<str> {
    match &*config.name {
        "" => webhook.url.host().unwrap_or_default().into(),
        name => name.into(),
    }
}
