//! What can be wrong with a configuration, in words for whoever wrote it.

use std::{fmt, path::PathBuf};

/// One thing that is wrong with a file: where, what, and what is allowed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key's path, like `backends[0].url`; empty where it is about the whole.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// One thing that an operator should know about a file that is used nevertheless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The key's path, like `routing.fallback`.
    pub path: String,
    /// What has no effect, or is understood in a way that may surprise.
    pub message: String,
}

/// Why a configuration can't be used. Its text is one line for each mistake, and quotes no secret.
///
/// ```
/// use llmproxy_config::{LoadOptions, load_str};
///
/// let options = LoadOptions { strict: true, env: false, ..LoadOptions::default() };
/// let error = load_str("backends: [{url: 'ftp://a'}]\nserver: {lisen: ':80'}\n", &options).unwrap_err();
/// for mistake in error.mistakes() {
///     println!("{}: {}", mistake.path, mistake.message);
/// }
/// assert_eq!(error.mistakes().len(), 2);
/// ```
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no YAML; the message names line and column.
    #[error("not valid YAML: {message}")]
    Parse {
        /// What the parser says.
        message: String,
    },
    /// The file is YAML, and these things are wrong with it: all of them, in the order of their paths.
    #[error("{}", list(.0))]
    Mistakes(Vec<Mistake>),
}

fn list(mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    lines.join("\n")
}

// === impl Mistake ===

impl Mistake {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, &self.path, &self.message)
    }
}

// === impl Warning ===

impl Warning {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, &self.path, &self.message)
    }
}

fn write_line(f: &mut fmt::Formatter<'_>, path: &str, message: &str) -> fmt::Result {
    if path.is_empty() { f.write_str(message) } else { write!(f, "{path}: {message}") }
}

// === impl LoadError ===

impl LoadError {
    /// The mistakes one by one; empty where the file was not even read.
    pub fn mistakes(&self) -> &[Mistake] {
        match self {
            Self::Mistakes(mistakes) => mistakes,
            Self::Read { .. } | Self::Parse { .. } => &[],
        }
    }
}
