//! Certificates: from their files, again when those change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use llmproxy_config::{ClientAuth, ListenerConfig, ServerConfig, TlsConfig};
use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. A change counts when they look the same twice, so that a certificate is not read
/// without the key that is just being written.
const LOOK: Duration = Duration::from_secs(1);

/// The protocols that are offered in the handshake (RFC 7301), the better one first.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why a listener's certificate can't be used. Each text names the file, the key that names it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is not there, or not for us.
    #[error("the file {} ({key}) can't be read: {source}; name a file that the user that runs llmproxy may read", path.display())]
    Read {
        /// The key of the configuration.
        key: String,
        /// What it says.
        path: PathBuf,
        /// What is wrong with that.
        source: io::Error,
    },
    /// A file with something else in it.
    #[error("the file {} ({key}) has no {what} that can be used: {reason}", path.display())]
    Content {
        /// The key of the configuration.
        key: String,
        /// What it says.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// What is there instead.
        reason: String,
    },
    /// Certificate and key, each good in itself, that do not belong together.
    #[error(
        "the key {} is not that of the certificate {} ({place}): name the two that were made together; in a file with several \
         certificates the server's own must come first", key.display(), cert.display()
    )]
    Mismatch {
        /// The block of the configuration.
        place: String,
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// What one listener encrypts with.
#[derive(Debug)]
pub(crate) struct Tls {
    files: Files,
    current: ArcSwap<rustls::ServerConfig>,
    read: Stamp,
}

/// Where it comes from.
#[derive(Clone, Debug)]
struct Files {
    /// The block of the configuration, for messages.
    place: String,
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_auth: ClientAuth,
    http2: bool,
}

/// What tells one state of the files from another: of each its time and size, or that it can't be had.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Reads the certificates of all listeners as a start would, and forgets them.
///
/// # Errors
///
/// If one of them can't be used.
///
/// ```
/// use llmproxy_config::{ServerConfig, TlsConfig};
///
/// let missing = |name: &str| Some(std::env::temp_dir().join(name));
/// let tls = TlsConfig { cert_file: missing("no-cert.pem"), key_file: missing("no-key.pem"), ..TlsConfig::default() };
/// let error = llmproxy_stack::check_tls(&ServerConfig { tls, ..ServerConfig::default() }).unwrap_err();
/// assert!(error.to_string().contains("no-cert.pem (server.tls.cert_file) can't be read"));
/// ```
pub fn check_tls(config: &ServerConfig) -> Result<(), TlsError> {
    for (place, listener) in places(config) {
        Tls::load(&place, &listener.tls, config.http2.enabled)?;
    }
    Ok(())
}

/// All listeners, each with the block of the configuration that it comes from.
pub(crate) fn places(config: &ServerConfig) -> impl Iterator<Item = (String, ListenerConfig)> {
    let all = config.all_listeners();
    let first = all.len() - config.listeners.len();
    all.into_iter().enumerate().map(move |(index, listener)| match index.checked_sub(first) {
        Some(index) => (format!("server.listeners[{index}].tls"), listener),
        None => ("server.tls".to_owned(), listener),
    })
}

// === impl Tls ===

impl Tls {
    /// Reads the files that `config` names; `None` where it is off. It blocks while it reads.
    pub(crate) fn load(place: &str, config: &TlsConfig, http2: bool) -> Result<Option<Arc<Self>>, TlsError> {
        let (true, Some(cert), Some(key)) = (config.is_on(), &config.cert_file, &config.key_file) else {
            return Ok(None);
        };
        let files = Files {
            place: place.to_owned(),
            cert: cert.clone(),
            key: key.clone(),
            client_ca: config.client_ca_file.clone(),
            client_auth: config.client_auth.unwrap_or_default(),
            http2,
        };
        // Looked at before they are read: what changes meanwhile is read again.
        let read = files.stamp();
        let current = ArcSwap::from_pointee(files.read()?);
        Ok(Some(Arc::new(Self { files, current, read })))
    }

    /// What to accept a connection with.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.load_full().into()
    }

    /// Reads the files again whenever they have changed. New ones that can't be used change nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the files are no longer looked at.
    pub(crate) async fn watch(self: Arc<Self>) {
        let (mut known, mut last) = (self.read.clone(), self.read.clone());
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let this = self.clone();
            let known_now = known.clone();
            let last_now = last.clone();
            // Files may be on a disk that makes one wait.
            let looked = tokio::task::spawn_blocking(move || {
                let now = this.files.stamp();
                let result = (now != known_now && now == last_now).then(|| this.files.read());
                (now, result)
            });
            let Ok((now, result)) = looked.await else { return };
            match result {
                Some(Ok(config)) => {
                    self.current.store(Arc::new(config));
                    tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
                }
                Some(Err(error)) => {
                    tracing::error!("the new certificate can't be used, the old one stays in force: {error}");
                }
                None => {}
            }
            if now == last {
                known = now.clone();
            }
            last = now;
        }
    }
}

/// Whether a handshake came to HTTP/2.
pub(crate) fn chose_http2(connection: &rustls::ServerConnection) -> bool {
    connection.alpn_protocol() == Some(HTTP2)
}

// === impl Files ===

impl Files {
    fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| of(path))
            .collect()
    }

    fn read(&self) -> Result<rustls::ServerConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring offers what the versions need");
        let builder = match (self.client_auth, &self.client_ca) {
            (ClientAuth::None, _) | (_, None) => builder.with_no_client_auth(),
            (auth, Some(path)) => {
                let mut roots = RootCertStore::empty();
                for certificate in self.certificates("client_ca_file", path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| self.content("client_ca_file", path, "certificate", &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = if auth == ClientAuth::Request { verifier.allow_unauthenticated() } else { verifier };
                let verifier =
                    verifier.build().map_err(|error| self.content("client_ca_file", path, "certificate", &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let certificates = self.certificates("cert_file", &self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                let reason = "none is in it in PEM; one that is encrypted must be decrypted first";
                self.content("key_file", &self.key, "private key", &reason)
            }
            error => self.unreadable("key_file", &self.key, "private key", error),
        })?;
        let mut config = builder.with_single_cert(certificates, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatch { place: self.place.clone(), cert: self.cert.clone(), key: self.key.clone() }
            }
            rustls::Error::InvalidCertificate(_) => self.content("cert_file", &self.cert, "certificate", &error),
            error => self.content("key_file", &self.key, "private key", &error),
        })?;
        config.alpn_protocols = if self.http2 { vec![HTTP2.into(), HTTP1.into()] } else { vec![HTTP1.into()] };
        Ok(config)
    }

    fn certificates(&self, key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let wrong = |error| self.unreadable(key, path, "certificate", error);
        let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
        let found = found.map_err(wrong)?;
        if found.is_empty() {
            return Err(self.content(key, path, "certificate", &"none is in it in PEM"));
        }
        Ok(found)
    }

    fn unreadable(&self, key: &str, path: &Path, what: &'static str, error: pem::Error) -> TlsError {
        match error {
            pem::Error::Io(source) => {
                TlsError::Read { key: format!("{}.{key}", self.place), path: path.into(), source }
            }
            error => self.content(key, path, what, &error),
        }
    }

    fn content(&self, key: &str, path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> TlsError {
        TlsError::Content { key: format!("{}.{key}", self.place), path: path.into(), what, reason: reason.to_string() }
    }
}
