//! A record, for all tests.

use std::{sync::Arc, time::Duration};

use llmproxy_core::{Cost, Endpoint, TokenUsage, UsageRecord, UsageSource, UsageSources};

/// A record of a stream that went well.
pub(crate) fn record() -> Arc<UsageRecord> {
    Arc::new(UsageRecord {
        request_id: uuid::Uuid::now_v7(),
        upstream_id: Some("chatcmpl-1".into()),
        timestamp: "2026-01-23T10:30:00.5Z".parse().unwrap(),
        key_name: Some("alice".into()),
        key_fingerprint: Some("ab12".into()),
        user_id: Some("u-1".into()),
        client_ip: Some("10.0.0.1".parse().unwrap()),
        model: Some("demo".into()),
        stream: true,
        backend: Some("gpu-1".into()),
        backend_url: Some("http://gpu-1:8000".into()),
        attempts: 2,
        usage: Some(TokenUsage { prompt: 7, completion: 21, cached: Some(4), reasoning: None }),
        usage_source: Some(UsageSources::both(UsageSource::Backend)),
        latency: Duration::from_millis(1500),
        time_to_first_byte: Some(Duration::from_millis(400)),
        time_to_first_token: Some(Duration::from_millis(500)),
        longest_gap: Some(Duration::from_micros(70_250)),
        queue_time: Some(Duration::ZERO),
        proxy_time: Some(Duration::from_micros(90)),
        cost: Some(Cost { trillionths: 16_800_000, currency: "EUR".into() }),
        ..UsageRecord::new(Endpoint::of("/v1/chat/completions"))
    })
}
