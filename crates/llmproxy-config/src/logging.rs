//! The `log:` and `logging:` blocks: the program's own log, and the log of requests.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

/// The program's own log: starts, reloads, backends that come and go.
///
/// ```
/// use llmproxy_config::{LogConfig, LogOutput};
///
/// let config = LogConfig { output: "/var/log/llmproxy.log".into(), ..LogConfig::default() };
/// assert_eq!(config.target(), LogOutput::File("/var/log/llmproxy.log".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// How much is said.
    pub level: LogLevel,
    /// In what form.
    pub format: LogFormat,
    /// `stdout`, `stderr`, `file` (then `file.path`), or a path.
    pub output: String,
    /// The file.
    pub file: LogFile,
}

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a mistake.
    Debug,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What may need attention.
    Warn,
    /// What does.
    Error,
}

/// The form of the program's own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, written to at its end.
    File(PathBuf),
}

/// A file that a log is written to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LogFile {
    /// Its path.
    pub path: Option<PathBuf>,
}

/// What is logged of requests.
///
/// ```
/// use llmproxy_config::{AccessFormat, AccessOutput, LoggingConfig};
///
/// let log = LoggingConfig::default().access_log().expect("it is on unless switched off");
/// assert_eq!((log.format, log.output), (AccessFormat::Json, AccessOutput::Stdout));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoggingConfig {
    /// Whether anything is.
    pub enabled: bool,
    /// One line for each request.
    pub access: AccessConfig,
}

/// One line for each request, refused ones included. On by default, as JSON on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AccessConfig {
    /// Whether it is written.
    pub enabled: bool,
    /// In what form.
    pub format: AccessFormat,
    /// `stdout`, `file` (then `file.path`), or a path.
    pub output: String,
    /// The file.
    pub file: LogFile,
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// The line that web servers write, with the model and the backend after it.
    Combined,
}

/// The access log as it is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// In what form.
    pub format: AccessFormat,
    /// Where to.
    pub output: AccessOutput,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessOutput {
    /// Standard output.
    Stdout,
    /// A file, written to at its end.
    File(PathBuf),
}

// === impl LogConfig ===

impl LogConfig {
    /// Where the log goes.
    pub fn target(&self) -> LogOutput {
        match target(&self.output, &self.file) {
            Some(path) => LogOutput::File(path),
            None if self.output == "stderr" => LogOutput::Stderr,
            None => LogOutput::Stdout,
        }
    }

    /// Everything that is wrong with the block: the key below `log`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        check_file(&self.output, &self.file).map(|message| ("file.path".into(), message)).into_iter().collect()
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: LogLevel::default(),
            format: LogFormat::default(),
            output: "stdout".into(),
            file: LogFile::default(),
        }
    }
}

// === impl LogLevel ===

impl LogLevel {
    /// The level's name, as the configuration has it and as a filter of `tracing` reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

// === impl LoggingConfig ===

impl LoggingConfig {
    /// The access log to write; `None` where it is off.
    pub fn access_log(&self) -> Option<AccessLogConfig> {
        let access = &self.access;
        (self.enabled && access.enabled).then(|| AccessLogConfig {
            format: access.format,
            output: target(&access.output, &access.file).map_or(AccessOutput::Stdout, AccessOutput::File),
        })
    }

    /// Everything that is wrong with the block: the key below `logging`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mistake = check_file(&self.access.output, &self.access.file);
        let mut mistakes: Vec<_> = mistake.map(|message| ("access.file.path".into(), message)).into_iter().collect();
        if self.access.output == "stderr" {
            mistakes.push(("access.output".into(), "must be stdout, file or a path".into()));
        }
        mistakes
    }
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { enabled: true, access: AccessConfig::default() }
    }
}

// === impl AccessConfig ===

impl Default for AccessConfig {
    fn default() -> Self {
        Self { enabled: true, format: AccessFormat::default(), output: "stdout".into(), file: LogFile::default() }
    }
}

// === impl AccessOutput ===

impl fmt::Display for AccessOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The file that `output` means, if it means one.
fn target(output: &str, file: &LogFile) -> Option<PathBuf> {
    match output {
        "stdout" | "stderr" | "" => None,
        "file" => file.path.clone(),
        path => Some(path.into()),
    }
}

fn check_file(output: &str, file: &LogFile) -> Option<String> {
    let missing = output == "file" && file.path.as_ref().is_none_or(|path| path.as_os_str().is_empty());
    missing.then(|| "must name the file, since output is `file`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_a_word_or_a_path() {
        let log = |output: &str| LogConfig {
            output: output.into(),
            file: LogFile { path: Some("/var/log/a".into()) },
            ..LogConfig::default()
        };
        assert_eq!(log("stdout").target(), LogOutput::Stdout);
        assert_eq!(log("stderr").target(), LogOutput::Stderr);
        assert_eq!(log("file").target(), LogOutput::File("/var/log/a".into()));
        assert_eq!(log("/tmp/b.log").target(), LogOutput::File("/tmp/b.log".into()));
    }

    #[test]
    fn a_file_without_a_path_is_a_mistake() {
        let log = LogConfig { output: "file".into(), ..LogConfig::default() };
        assert_eq!(log.validate()[0].0, "file.path");
    }

    #[test]
    fn requests_are_logged_as_json_to_stdout_unless_told_otherwise() {
        let expected = AccessLogConfig { format: AccessFormat::Json, output: AccessOutput::Stdout };
        assert_eq!(LoggingConfig::default().access_log(), Some(expected));
        let off = LoggingConfig { enabled: false, ..LoggingConfig::default() };
        assert_eq!(off.access_log(), None);
    }
}
