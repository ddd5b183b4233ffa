//! A record, for all tests.

use std::{sync::Arc, time::Duration};

use llmproxy_core::{End, Endpoint, TokenUsage, UsageRecord, UsageSource};

/// A record of a stream that went well.
pub(crate) fn record() -> Arc<UsageRecord> {
    Arc::new(UsageRecord {
        request_id: uuid::Uuid::now_v7(),
        client_request_id: None,
        upstream_id: Some("chatcmpl-1".into()),
        timestamp: "2026-01-23T10:30:00.5Z".parse().unwrap(),
        key_name: Some("alice".into()),
        key_fingerprint: Some("ab12".into()),
        user_id: Some("u-1".into()),
        client_ip: Some("10.0.0.1".parse().unwrap()),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        endpoint: Endpoint::of("/v1/chat/completions"),
        model: Some("demo".into()),
        served_model: None,
        stream: true,
        backend: Some("gpu-1".into()),
        backend_url: Some("http://gpu-1:8000".into()),
        attempts: 2,
        status: 200,
        end: End::Complete,
        error: None,
        usage: Some(TokenUsage { prompt: 7, completion: 21, cached: Some(4), reasoning: None }),
        usage_source: Some(UsageSource::Backend),
        latency: Duration::from_millis(1500),
        time_to_first_byte: Some(Duration::from_millis(400)),
        time_to_first_token: Some(Duration::from_millis(500)),
    })
}
