//! What administrators change is told in the log.

mod common;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use common::{Checks, backends};
use llmproxy_balancer::{Balancer, HealthCheckConfig};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::with_default,
};

/// Keeps every event as a line of its fields.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().expect("no test panics in here").push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_weight_and_a_drain_leave_a_line_each_in_the_log() {
    let balancer = Balancer::new(Checks::default().client());
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(&backends(&[1]), &Default::default(), &health, &Default::default());
    let lines = Lines::default();
    with_default(lines.clone(), || {
        balancer.set_weight("a", 5);
        balancer.set_weight("a", 5);
        balancer.set_draining("a", true);
    });
    let lines = lines.0.lock().expect("no test panics in here");
    let told: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    assert_eq!(told.len(), 2, "what changes nothing is no news: {told:?}");
    for (line, expected) in told.iter().zip([["backend=a", "weight=5", "old=1"], ["backend=a", "draining=true", ""]]) {
        assert!(expected.iter().all(|field| line.contains(field)), "{line}");
    }
}
