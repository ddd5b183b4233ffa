//! A real inference server, and what it says of itself.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use llmproxy_testkit::Client;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::{Engine, scratch::Scratch};

/// How long a server may take until it answers. vLLM compiles first.
const START: Duration = Duration::from_secs(300);
/// How often something is looked at that can't be waited for.
const LOOK: Duration = Duration::from_millis(25);
/// The same where a server is to notice that its client has left: llama-server looks for that when nothing has happened for
/// a second, and being asked for its metrics is something that happens.
const LOOK_SELDOM: Duration = Duration::from_millis(1500);

/// A running server; killed when dropped, with all processes that it has started.
pub(crate) struct Server {
    pub(crate) engine: Engine,
    pub(crate) model: &'static str,
    pub(crate) address: SocketAddr,
    child: Child,
}

/// What a server has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Tokens of prompts, those from a cache included.
    pub(crate) prompt: u64,
    /// Tokens generated.
    pub(crate) completion: u64,
}

// === impl Server ===

impl Server {
    /// llama-server with one of the scratch folder's models.
    pub(crate) async fn llama(
        scratch: &Scratch,
        file: &str,
        model: &'static str,
        options: &[&str],
    ) -> Result<Self, String> {
        let mut command = Command::new(scratch.llama_server());
        command.arg("-m").arg(scratch.model(file));
        // Room for the longest prompt in each of four slots; one thread, so that two servers leave room for the rest.
        command.args(["-a", model, "-t", "1", "-np", "4", "-c", "262144", "--metrics", "--slots", "--jinja"]);
        command.args(options);
        Self::start(Engine::Llama, model, command, scratch).await
    }

    /// vLLM on the CPU.
    pub(crate) async fn vllm(scratch: &Scratch, model: &'static str) -> Result<Self, String> {
        let mut command = Command::new(scratch.vllm_python());
        command.args(["-m", "vllm.entrypoints.openai.api_server", "--model"]).arg(scratch.vllm_model());
        command.args(["--served-model-name", model, "--dtype", "float32", "--enforce-eager"]);
        command.args(["--max-model-len", "65536", "--max-num-seqs", "8", "--max-num-batched-tokens", "256"]);
        command.args(["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]);
        command.env("VLLM_CPU_KVCACHE_SPACE", "2").env("HF_HUB_OFFLINE", "1").env("VLLM_NO_USAGE_STATS", "1");
        Self::start(Engine::Vllm, model, command, scratch).await
    }

    async fn start(
        engine: Engine,
        model: &'static str,
        mut command: Command,
        scratch: &Scratch,
    ) -> Result<Self, String> {
        let address = free_address()?;
        let path = scratch.log(&format!("server-{model}-{}", address.port()));
        let log = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        command.stdin(Stdio::null()).stdout(log).stderr(errors).kill_on_drop(true).process_group(0);
        let child = command.spawn().map_err(|error| format!("{:?}: {error}", command.as_std().get_program()))?;
        let mut server = Self { engine, model, address, child };
        let deadline = tokio::time::Instant::now() + START;
        while !server.is_up().await {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("the server ended with {status}; see {}", path.display()));
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("the server does not answer; see {}", path.display()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it as an accident would.
    pub(crate) async fn kill(mut self) -> Result<(), String> {
        self.kill_all();
        self.child.wait().await.map(drop).map_err(|error| error.to_string())
    }

    /// It may have workers, which do not notice that it is gone.
    fn kill_all(&self) {
        let group = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// What it has counted, once nothing is running there any more.
    pub(crate) async fn counted(&self) -> Result<Counted, String> {
        self.when(Duration::from_secs(30), LOOK, "end", |running| running == 0).await?;
        let metrics = self.metrics().await;
        Ok(match self.engine {
            Engine::Llama => Counted {
                prompt: sum(&metrics, "llamacpp:prompt_tokens_total")
                    + sum(&metrics, "llamacpp:prompt_tokens_cached_total"),
                completion: sum(&metrics, "llamacpp:tokens_predicted_total"),
            },
            Engine::Vllm => Counted {
                prompt: sum(&metrics, "vllm:prompt_tokens_total"),
                completion: sum(&metrics, "vllm:generation_tokens_total"),
            },
        })
    }

    /// Waits until something is running there.
    pub(crate) async fn when_busy(&self) -> Result<(), String> {
        self.when(Duration::from_secs(10), LOOK, "begin", |running| running > 0).await.map(drop)
    }

    /// Waits until it has stopped working for clients that have left. Returns how long that took at most.
    pub(crate) async fn when_stopped(&self, patience: Duration) -> Result<Duration, String> {
        let began = tokio::time::Instant::now();
        tokio::time::sleep(LOOK_SELDOM).await;
        self.when(patience, LOOK_SELDOM, "end", |running| running == 0).await?;
        Ok(began.elapsed())
    }

    async fn when(
        &self,
        patience: Duration,
        look: Duration,
        what: &str,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<(), String> {
        let began = tokio::time::Instant::now();
        while !wanted(self.running().await) {
            if began.elapsed() > patience {
                return Err(format!("nothing seems to {what} at {} within {patience:?}", self.url()));
            }
            tokio::time::sleep(look).await;
        }
        Ok(())
    }

    async fn running(&self) -> u64 {
        let metrics = self.metrics().await;
        match self.engine {
            Engine::Llama => {
                sum(&metrics, "llamacpp:requests_processing") + sum(&metrics, "llamacpp:requests_deferred")
            }
            Engine::Vllm => sum(&metrics, "vllm:num_requests_running") + sum(&metrics, "vllm:num_requests_waiting"),
        }
    }

    async fn metrics(&self) -> String {
        Client::connect(self.address).await.get("/metrics").await.text()
    }

    async fn is_up(&self) -> bool {
        match Client::try_connect(self.address).await {
            Ok(mut client) => client.get("/health").await.status == 200,
            Err(_) => false,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl std::ops::Sub for Counted {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { prompt: self.prompt - before.prompt, completion: self.completion - before.completion }
    }
}

impl std::ops::Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { prompt: self.prompt + other.prompt, completion: self.completion + other.completion }
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} + {}", self.prompt, self.completion)
    }
}

/// An address of loopback that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("no free port: {error}"))?;
    listener.local_addr().map_err(|error| error.to_string())
}

/// The sum of the series `name`.
pub(crate) fn sum(metrics: &str, name: &str) -> u64 {
    let values = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_it = series == name || series.strip_prefix(name).is_some_and(|labels| labels.starts_with('{'));
        is_it.then(|| value.parse::<f64>().ok()).flatten()
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, written as floats")]
    let total = values.sum::<f64>() as u64;
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_series_and_of_no_other() {
        let metrics = "# TYPE x counter\nx{a=\"1\"} 2.0\nx{a=\"2\"} 3\nx_total 7\nxx 9\ny 4\n";
        assert_eq!(sum(metrics, "x"), 5);
        assert_eq!(sum(metrics, "y"), 4);
        assert_eq!(sum(metrics, "z"), 0);
    }
}
