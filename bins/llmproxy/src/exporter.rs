//! Exports the metrics of all parts in Prometheus' text format.

use std::{sync::Arc, time::Duration};

use llmproxy_stack::{RenderMetrics, metrics};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

/// How often the exporter folds what was measured into its histograms, so that memory stays bounded between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the recorder for the process.
///
/// # Errors
///
/// If there is one already.
pub(crate) fn install() -> Result<RenderMetrics, String> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in metrics::buckets() {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
            .map_err(|error| format!("the buckets of {name}: {error}"))?;
    }
    let handle = builder.install_recorder().map_err(|error| format!("metrics can't be exported: {error}"))?;
    metrics::describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(Arc::new(move || handle.render()))
}
