//! Why a request is refused, and what can be wrong with a configuration or a store.

use std::sync::Arc;

use http::StatusCode;

/// Why a request is refused. Its text is for the client.
///
/// ```
/// # use llmproxy_auth::{AuthConfig, Authenticator, Refusal, SourceConfig};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let config = AuthConfig { enabled: true, pipeline: vec![SourceConfig::of_keys([])], ..AuthConfig::default() };
/// let error = Authenticator::new(&config, None)?
///     .authenticate(&http::HeaderMap::new(), "/v1/models", None)
///     .await
///     .unwrap_err();
/// assert_eq!((error.status().as_u16(), error.code(), error.refusal()), (401, "ERROR", Refusal::Missing));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AuthError {
    refusal: Refusal,
    status: StatusCode,
    message: Arc<str>,
}

/// The reasons, in the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No key was sent.
    Missing,
    /// A source of keys failed, so that it is not known whose the key is.
    SourceFailed,
    /// No source knows the key.
    Unknown,
    /// The key was taken out of use.
    Disabled,
    /// The key's time is over.
    Expired,
    /// The key's time has not begun.
    NotStarted,
    /// The key's quota is used up.
    QuotaExceeded,
    /// The configuration does not let keys in good order pass.
    Barred,
    /// The key may not be used from this address.
    Address,
}

/// What is wrong with an `auth` block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthConfigError {
    /// Mistakes, each with the path of its key below `auth`; see [`AuthConfig::validate`](crate::AuthConfig::validate).
    #[error("{}", list(.0))]
    Invalid(Vec<(String, String)>),
    /// The block asks for the builtin key store, and there is none.
    #[error("auth asks for the builtin key store, but none was opened; open the one at admin.db_path")]
    NoStore,
}

/// What can go wrong with a [`KeyStore`](crate::KeyStore). No text of it holds a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The file or its folder.
    #[error("the file can't be used: {0}")]
    File(#[from] std::io::Error),
    /// The database.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The file is the database of something else.
    #[error("the file is the database of something else and is left alone; name another one")]
    Foreign,
    /// The file was written by a newer version.
    #[error("the file was written by a newer version (schema {found}, this one knows {known}); use that version")]
    Newer {
        /// The file's version.
        found: i64,
        /// The newest version that is known here.
        known: i64,
    },
    /// A key in use has the name already.
    #[error("there is a key named `{0}` already; revoke it first, or use another name")]
    NameTaken(String),
    /// No key fits.
    #[error("no key has that name, fingerprint or value; list the keys to see what there is")]
    NotFound,
    /// More than one key fits.
    #[error("several keys have that name; name one by its fingerprint: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The store was closed.
    #[error("the key store is closed")]
    Closed,
}

fn list(mistakes: &[(String, String)]) -> String {
    let lines: Vec<String> = mistakes.iter().map(|(path, what)| format!("auth.{path}: {what}")).collect();
    lines.join("; ")
}

// === impl KeyStoreError ===

impl KeyStoreError {
    /// What an operator can do about a store that does not open, where the error itself does not say it.
    pub fn advice(&self) -> Option<&'static str> {
        const WRITABLE: &str = "the user that runs llmproxy must be able to write the file and its folder";
        match self {
            Self::File(_) => Some(WRITABLE),
            Self::Database(sqlx::Error::Database(error)) => match error.code()?.parse::<u32>().ok()? & 0xff {
                // SQLite's primary result codes.
                8 | 10 | 14 => Some(WRITABLE),
                5 | 6 => Some("another process holds it; stop that one, or wait until it is done"),
                11 => Some("the file is damaged; move it away and put back a copy, or make the keys again"),
                13 => Some("the disk is full; make room"),
                26 => Some("it is no key store; move it away so that a new one is made, or name another file"),
                _ => None,
            },
            _ => None,
        }
    }
}

// === impl AuthError ===

impl AuthError {
    pub(crate) fn new(refusal: Refusal, status: StatusCode, message: Arc<str>) -> Self {
        Self { refusal, status, message }
    }

    /// The reason.
    pub fn refusal(&self) -> Refusal {
        self.refusal
    }

    /// The answer's status: the configuration's for that status of a key, or else [`Refusal::status`].
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What a program tells errors apart by: see [`Refusal::code`].
    pub fn code(&self) -> &'static str {
        self.refusal.code()
    }
}

// === impl Refusal ===

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Missing,
        Self::SourceFailed,
        Self::Unknown,
        Self::Disabled,
        Self::Expired,
        Self::NotStarted,
        Self::QuotaExceeded,
        Self::Barred,
        Self::Address,
    ];

    /// What a program tells errors apart by; also the label `code` of the metric. Several reasons may share one.
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing | Self::SourceFailed => "ERROR",
            Self::Unknown => "NOT_FOUND",
            Self::Disabled => "DISABLED",
            Self::Expired | Self::NotStarted => "EXPIRED",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::Barred | Self::Address => "INVALID",
        }
    }

    /// The answer's status, unless the configuration says otherwise: 401 where who is calling is not known, 403 where
    /// it is (RFC 9110, sections 15.5.2 and 15.5.4), 429 for a quota, 500 for a source that failed.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::Unknown => StatusCode::UNAUTHORIZED,
            Self::SourceFailed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::Disabled | Self::Expired | Self::NotStarted | Self::Barred | Self::Address => StatusCode::FORBIDDEN,
        }
    }

    /// What the client reads, unless the configuration says otherwise.
    pub fn message(self) -> &'static str {
        match self {
            Self::Missing => "no API key was sent; send one as `Authorization: Bearer KEY`",
            Self::SourceFailed => "the API key could not be checked; try again later",
            Self::Unknown => "the API key is not known here; check it for typing errors",
            Self::Disabled => "the API key is disabled; ask who gave it to you",
            Self::Expired => "the API key has expired; ask for a new one",
            Self::NotStarted => "the API key is not valid yet; wait until its time begins",
            Self::QuotaExceeded => "the quota of the API key is used up; ask who gave it to you",
            Self::Barred => "the API key may not be used at present; ask who gave it to you",
            Self::Address => "the API key may not be used from this address; use it from where it is allowed",
        }
    }
}
