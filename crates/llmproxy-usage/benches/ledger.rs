//! What the ledger costs: records a second, processor time for each, and what it adds to the end of an answer.
//!
//! ```text
//! cargo bench -p llmproxy-usage --bench ledger [-- FOLDER]
//! ```
//!
//! Exchanges come through both layers, as many at a time as it says, and one reporter reads each record again. The file is in
//! the folder, which decides what a sync costs; without one, in target.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use llmproxy_core::{BoxError, Endpoint, Exchange, HttpClient, RequestBody, TokenUsage, UsageRecord};
use llmproxy_usage::{
    Durability, Entry, LedgerConfig, OpeningLayer, Report, ReportBatch, Reporters, UsageConfig, UsageLayer, Verdict,
};
use tokio::time::Instant;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

const RELAXED: u64 = 200_000;
const STRICT: u64 = 20_000;

/// Takes them by the 500, and knows how many there were.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Report for Count {
    fn name(&self) -> &str {
        "count"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move { self.report_batch(&[entry]).await })
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        Some(self)
    }
}

impl ReportBatch for Count {
    fn size(&self) -> usize {
        500
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            self.0.fetch_add(entries.len() as u64, Ordering::Relaxed);
            Verdict::Delivered
        })
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<(), BoxError> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = folder.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!(
        "{:8} {:>9} {:>11} {:>10} {:>12} {:>12}",
        "", "at a time", "records/s", "CPU each", "end, median", "end, 99 %"
    );
    for (durability, count, levels) in
        [(Durability::Relaxed, RELAXED, [1, 16, 256]), (Durability::Strict, STRICT, [1, 16, 256])]
    {
        for level in levels {
            run(&folder, durability, count, level).await?;
        }
    }
    Ok(())
}

async fn run(folder: &Path, durability: Durability, count: u64, level: u64) -> Result<(), BoxError> {
    let folder = folder.join(format!("ledger-{}", std::process::id()));
    let config = UsageConfig {
        durability,
        ledger: LedgerConfig { path: folder.join("usage.db"), ..LedgerConfig::default() },
        ..UsageConfig::default()
    };
    let reporter = Arc::new(Count::default());
    let nobody = HttpClient::new(service_fn(async |_: Request<Bytes>| Ok::<_, BoxError>(Response::new(Bytes::new()))));
    let reporters = Reporters::with_own(nobody, vec![reporter.clone()]);
    reporters.open(&config).await?;
    reporters.apply(&config);
    let left = AtomicU64::new(count);
    let (cpu, began) = (cpu_time()?, Instant::now());
    let clients = (0..level).map(|_| client(&reporters, &left));
    let mut ends: Vec<Duration> = futures_util::future::try_join_all(clients).await?.concat();
    reporters.flush(Duration::from_secs(60)).await;
    let (took, cpu) = (began.elapsed(), cpu_time()?.saturating_sub(cpu));
    reporters.close().await;
    std::fs::remove_dir_all(&folder)?;
    assert_eq!(reporter.0.load(Ordering::Relaxed), count, "each record was read, once");
    ends.sort_unstable();
    let at = |part: f64| ends[((ends.len() - 1) as f64 * part) as usize];
    println!(
        "{:8} {level:9} {:11.0} {:7.1} µs {:9.1} µs {:9.1} µs",
        format!("{durability:?}").to_lowercase(),
        count as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / count as f64,
        at(0.5).as_secs_f64() * 1e6,
        at(0.99).as_secs_f64() * 1e6,
    );
    Ok(())
}

/// One exchange after the other, as long as any are left; returns what each end took.
async fn client(reporters: &Arc<Reporters>, left: &AtomicU64) -> Result<Vec<Duration>, BoxError> {
    let stack = ServiceBuilder::new().layer(UsageLayer::new(reporters.clone()));
    let inner = service_fn(async |_: Request<RequestBody>| Ok::<_, BoxError>(Response::new(())));
    let service = stack.service(OpeningLayer::new(reporters.clone()).layer(inner));
    let mut ends = Vec::new();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let mut request = Request::new(RequestBody::whole("{}"));
        let exchange = Exchange::of(request.extensions_mut());
        service.clone().oneshot(request).await?;
        let record = record(&exchange);
        let began = Instant::now();
        for sink in exchange.take_sinks() {
            sink.record(&record);
        }
        if let Some(hold) = exchange.take_end_hold() {
            hold.await?;
        }
        ends.push(began.elapsed());
        // A backend would have taken its time.
        tokio::task::yield_now().await;
    }
    Ok(ends)
}

fn record(exchange: &Exchange) -> Arc<UsageRecord> {
    Arc::new(UsageRecord {
        request_id: exchange.id(),
        key_name: Some("alice".into()),
        key_fingerprint: Some("3ffe4b6db1a10c7b".into()),
        user_id: Some("u-1".into()),
        upstream_id: Some("chatcmpl-0d9c4f6e8a7b4c3d".into()),
        model: Some("qwen2.5-32b".into()),
        stream: true,
        backend: Some("gpu-1".into()),
        backend_url: Some("http://gpu-1:8000".into()),
        usage: Some(TokenUsage { prompt: 812, completion: 230, ..TokenUsage::default() }),
        latency: Duration::from_millis(4321),
        time_to_first_token: Some(Duration::from_millis(230)),
        ..UsageRecord::new(Endpoint::of("/v1/chat/completions"))
    })
}

/// Of all threads of this process, user and system.
fn cpu_time() -> Result<Duration, BoxError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let behind = stat.rsplit(") ").next().ok_or("no name")?;
    let ticks = |index: usize| behind.split(' ').nth(index).and_then(|field| field.parse::<u64>().ok());
    // In hundredths of a second, whatever the machine (proc(5), utime and stime).
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).ok_or("no times")?;
    Ok(Duration::from_millis(ticks * 10))
}
