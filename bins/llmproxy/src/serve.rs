//! Runs the proxy until a signal ends it.

use std::{process::ExitCode, sync::Arc, time::Duration};

use llmproxy_config::{Config, LoadOptions, ServerConfig, load};
use llmproxy_stack::{BindError, Options, Runtime, Server, StartError};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    EX_USAGE,
    check::{explain, load_or_explain},
    cli::ConfigArgs,
    exporter, logging,
};

/// After the streams are over, how long records may take to reach their receivers.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an administrator's request may take that is under way at the end.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// `llmproxy serve`.
pub(crate) async fn run(args: &ConfigArgs) -> Result<ExitCode, String> {
    let Some(loaded) = load_or_explain(args) else { return Ok(ExitCode::from(EX_USAGE)) };
    logging::init(&loaded.config.log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let config = loaded.config;
    let options = Options { render_metrics: Some(exporter::install()?), ..Options::default() };
    // Signals are caught before anything can be asked to stop.
    let signals = Signals::new().map_err(|error| format!("signals can't be caught: {error}"))?;
    let runtime = Runtime::start(&config, options).await.map_err(|error: StartError| error.to_string())?;
    let server = Server::bind(&config.server, runtime.stop_flag()).await.map_err(|error| explain_bind(&error))?;
    let server = server.with_refusals(runtime.refusals());
    for listening in server.listening().map_err(|error| error.to_string())? {
        let (address, tls) = (listening.address, listening.tls);
        tracing::info!(%address, tls, backends = config.backends.len(), auth = config.auth.enabled, "listening");
    }
    let admin = Admin::start(&config, &runtime).await?;
    let shutdown = signals.wait(runtime.clone(), args.clone(), config);
    server.run(runtime.service(), shutdown).await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    let left = runtime.shutdown(FLUSH_TIMEOUT).await;
    if left > 0 {
        tracing::warn!(
            left,
            "usage records are not delivered yet; they wait in the ledger and go out after the next start"
        );
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Administration on a listener of its own. It stays until the last stream is over: how that goes can be looked at.
struct Admin {
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

// === impl Admin ===

impl Admin {
    /// Listens, if the configuration says so.
    async fn start(config: &Config, runtime: &Runtime) -> Result<Option<Self>, String> {
        let Some(listen) = config.admin_listen() else { return Ok(None) };
        let only = ServerConfig { listen: listen.to_owned(), shutdown_timeout: ADMIN_GRACE, ..ServerConfig::default() };
        let server = Server::bind(&only, runtime.stop_flag()).await;
        let server = server.map_err(|error| explain_bind(&error).replace("server.listen", "admin.listen"))?;
        let address = server.local_addr().map_err(|error| error.to_string())?;
        tracing::info!(%address, "listening for administrators");
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        Ok(Some(Self { stop, served: tokio::spawn(server.run(runtime.admin_service(), stopped)) }))
    }

    async fn stop(self) {
        let Self { stop, served } = self;
        let _ = stop.send(());
        let _ = served.await;
    }
}

/// The signals that the proxy listens to.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

// === impl Signals ===

impl Signals {
    /// Catches them from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until SIGTERM or SIGINT comes.
    pub(crate) async fn stop(mut self, runtime: Arc<Runtime>) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        runtime.begin_shutdown();
    }

    /// Reloads on SIGHUP until SIGTERM or SIGINT comes.
    async fn wait(mut self, runtime: Arc<Runtime>, args: ConfigArgs, mut config: Config) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hangup.recv() => {
                    if let Some(new) = reload(&runtime, &args, &config).await {
                        config = new;
                    }
                }
            }
        }
        runtime.begin_shutdown();
    }
}

async fn reload(runtime: &Runtime, args: &ConfigArgs, old: &Config) -> Option<Config> {
    let loaded = match load(&args.config, &LoadOptions { strict: args.strict, ..LoadOptions::default() }) {
        Ok(loaded) => loaded,
        Err(error) => {
            Runtime::count_refused_reload();
            tracing::error!(
                "the new configuration can't be used; nothing was changed: {}",
                explain(&args.config, &error)
            );
            return None;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = runtime.reload(&loaded.config).await {
        tracing::error!("the new configuration can't be put in force; nothing was changed: {error}");
        return None;
    }
    for key in loaded.config.needs_restart(old) {
        tracing::warn!(key, "changed, but takes effect only with a restart");
    }
    tracing::info!(backends = loaded.config.backends.len(), "reloaded");
    Some(loaded.config)
}

fn explain_bind(error: &BindError) -> String {
    let BindError::Listen { source, .. } = error else { return error.to_string() };
    let advice = match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there; find it with `ss -ltnp` and stop it, or set server.listen to another port"
        }
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; set server.listen to a higher one",
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; set server.listen to one it has"
        }
        _ => "set server.listen to an address and port of this machine",
    };
    format!("{error}; {advice}")
}
