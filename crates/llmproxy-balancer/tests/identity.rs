//! Several entries for one server, say for several keys: each stays who it is.

mod common;

use std::sync::Arc;

use common::Checks;
use llmproxy_balancer::{BackendConfig, BackendState, Balancer, HealthCheckConfig, RoutingConfig};

fn balancer() -> Arc<Balancer> {
    Balancer::new(Checks::default().client())
}

/// Puts entries of these names in force, all of one server, and returns the names of those that are drained.
fn drained(balancer: &Balancer, names: &[&str]) -> Vec<String> {
    let entry = |name: &&str| BackendConfig { name: Some((*name).to_owned()), ..BackendConfig::new("http://a") };
    let backends: Vec<BackendConfig> = names.iter().map(entry).collect();
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let pool = balancer.apply(&backends, &RoutingConfig::default(), &health, &Default::default());
    let all = pool.snapshot();
    let drained = all.iter().filter(|status| status.state == BackendState::Draining);
    drained.map(|status| status.backend.name.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_drain_stays_with_the_entry_of_that_name_wherever_it_stands() {
    let balancer = balancer();
    drained(&balancer, &["old-key", "new-key"]);
    balancer.set_draining("old-key", true);
    assert_eq!(drained(&balancer, &["new-key", "old-key"]), ["old-key"]);
    assert_eq!(drained(&balancer, &["first", "new-key", "old-key"]), ["old-key"]);
    assert_eq!(drained(&balancer, &["new-key"]), [""; 0]);
    // What comes into the place that it had is another one; what comes back under its name is not.
    assert_eq!(drained(&balancer, &["newest-key", "new-key"]), [""; 0]);
    assert_eq!(drained(&balancer, &["new-key", "old-key"]), ["old-key"]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_with_a_new_name_is_the_one_whose_place_it_has() {
    let balancer = balancer();
    drained(&balancer, &["a", "b"]);
    balancer.set_draining("b", true);
    assert_eq!(drained(&balancer, &["a", "c"]), ["c"]);
    assert_eq!(drained(&balancer, &["d", "c"]), ["c"]);
    assert_eq!(drained(&balancer, &["c"]), ["c"]);
    assert_eq!(drained(&balancer, &["e"]), ["e"]);
    // The server is gone, and comes back under another name.
    assert_eq!(drained(&balancer, &[]), [""; 0]);
    assert_eq!(drained(&balancer, &["f"]), ["f"]);
}
