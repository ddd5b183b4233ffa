//! What is shown of backends, and what may be changed.

use serde::Serialize;

/// The backends that are administered. The stack has them; whoever embeds single layers may have others.
pub trait Backends: Send + Sync {
    /// How all are doing, in the configuration's order.
    fn overview(&self) -> Overview;

    /// Lets the backend of this name get no more requests, or get them again; whether that is news. `None` where there is
    /// none of that name.
    fn set_draining(&self, name: &str, draining: bool) -> Option<bool>;

    /// Gives the backend of this name another share of the work. `None` where there is none of that name.
    fn set_weight(&self, name: &str, weight: u32) -> Option<()>;
}

/// All backends, and who waits for them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overview {
    /// In the configuration's order.
    pub backends: Vec<BackendView>,
    /// Requests that wait because all backends that could take them are full.
    pub waiting: usize,
}

/// One backend.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BackendView {
    /// As in logs and metrics.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// `up`, `warming`, `pressured`, `ejected`, `draining`, `down`, or `unknown` before anything was heard.
    pub state: String,
    /// Why, in words, where it is not simply up.
    pub reason: Option<String>,
    /// Seconds since it came up, or went out.
    pub seconds: f64,
    /// Whether an administrator has drained it.
    pub draining: bool,
    /// Its share of the work.
    pub weight: u32,
    /// Backends of a lower tier are asked first.
    pub tier: u32,
    /// The group that rules may name.
    pub group: Option<String>,
    /// Requests whose answers have not ended.
    pub in_flight: usize,
    /// The most there may be.
    pub max_concurrent: Option<usize>,
    /// Tokens of their prompts and answers, as expected.
    pub tokens_in_flight: u64,
    /// The time to a first byte, in milliseconds, as measured.
    pub latency_ms: Option<f64>,
    /// The models that it serves, as far as it says.
    pub models: Vec<String>,
    /// What it says of its own load, whoever it comes from, where it has said so lately.
    pub reported: Option<LoadView>,
}

/// A backend's own word on its load.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LoadView {
    /// Requests that it works at.
    pub running: Option<u64>,
    /// Requests that wait there.
    pub waiting: Option<u64>,
    /// How much of its KV cache is in use, 0 to 1.
    pub kv_usage: Option<f64>,
}
