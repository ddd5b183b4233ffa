//! Where access lines go: a bounded queue and one thread that writes.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    net::IpAddr,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use llmproxy_config::{AccessFormat, AccessOutput};

use crate::metrics::ACCESS_LOG_DROPPED;

/// Lines that may wait to be written; past that they are dropped and counted, since a slow disk must not slow answers.
const QUEUE: usize = 8192;

/// The access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    format: AccessFormat,
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

/// One finished request, refused ones included.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    #[serde(serialize_with = "rfc3339")]
    pub(crate) timestamp: Timestamp,
    pub(crate) request_id: uuid::Uuid,
    pub(crate) client_ip: Option<IpAddr>,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status_code: u16,
    pub(crate) latency_ms: u64,
    pub(crate) backend_url: Option<&'a str>,
    pub(crate) api_key: &'a str,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) model: Option<&'a str>,
    pub(crate) is_stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<&'a str>,
}

// === impl AccessLog ===

impl AccessLog {
    /// Opens the output and starts its thread.
    ///
    /// # Errors
    ///
    /// If the file can't be opened or the thread not started.
    pub(crate) fn open(format: AccessFormat, output: &AccessOutput) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = match output {
            AccessOutput::Stdout => Box::new(io::stdout()),
            AccessOutput::File(path) => Box::new(append(path)?),
        };
        let (lines, queue) = sync_channel(QUEUE);
        let writer = thread::Builder::new().name("access-log".into()).spawn(move || write_all(&queue, sink))?;
        Ok(Self { format, lines: Some(lines), writer: Some(writer) })
    }

    /// Queues a line; drops and counts it when the queue is full.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let text = match self.format {
            AccessFormat::Json => serde_json::to_string(line).unwrap_or_default(),
            AccessFormat::Combined => line.combined(),
        };
        if let Some(lines) = &self.lines
            && lines.try_send(text).is_err()
        {
            metrics::counter!(ACCESS_LOG_DROPPED).increment(1);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // The thread ends when the queue is closed and empty; waiting for it writes what is left.
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_all(queue: &Receiver<String>, sink: Box<dyn Write + Send>) {
    let mut sink = BufWriter::new(sink);
    while let Ok(line) = queue.recv() {
        let mut next = Some(line);
        while let Some(line) = next {
            if let Err(error) = writeln!(sink, "{line}") {
                report(&error);
            }
            next = queue.try_recv().ok();
        }
        if let Err(error) = sink.flush() {
            report(&error);
        }
    }
}

fn report(error: &io::Error) {
    metrics::counter!(ACCESS_LOG_DROPPED).increment(1);
    tracing::error!(%error, "the access log can't be written");
    // A full disk fails each line at once; there is no need to say so a thousand times a second.
    thread::sleep(Duration::from_millis(100));
}

// === impl Line ===

impl Line<'_> {
    fn combined(&self) -> String {
        let ip = self.client_ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let user = self.user_id.unwrap_or("-");
        let zoned = self.timestamp.to_zoned_datetime(TimeZone::system());
        let mut line = format!(
            "{ip} - {user} [{}] \"{} {}\" {} {}ms \"{}\" model={} stream={}",
            zoned.strftime("%d/%b/%Y:%H:%M:%S %z"),
            self.method,
            Plain(self.path),
            self.status_code,
            self.latency_ms,
            self.backend_url.unwrap_or("-"),
            Plain(self.model.unwrap_or("-")),
            self.is_stream,
        );
        if let Some(error) = self.error {
            line.push_str(&format!(" error=\"{}\"", Plain(error)));
        }
        line
    }
}

/// Text from outside that can't break out of its place in a line.
struct Plain<'a>(&'a str);

impl std::fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

fn rfc3339<S: serde::Serializer>(timestamp: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line<'static> {
        Line {
            timestamp: "2026-01-02T15:04:05Z".parse().expect("a timestamp"),
            request_id: uuid::Uuid::nil(),
            client_ip: Some([10, 0, 0, 1].into()),
            method: "POST",
            path: "/v1/chat/completions",
            status_code: 200,
            latency_ms: 12,
            backend_url: Some("http://vllm:8000"),
            api_key: "abcd***wxyz",
            user_id: Some("alice"),
            model: Some("evil\"\nmodel"),
            is_stream: true,
            end: Some("complete"),
            error: None,
        }
    }

    #[test]
    fn a_combined_line_has_the_documented_shape() {
        let text = line().combined();
        assert!(text.starts_with("10.0.0.1 - alice ["), "{text}");
        assert!(
            text.contains(
                "\"POST /v1/chat/completions\" 200 12ms \"http://vllm:8000\" model=evil\\\"\\nmodel stream=true"
            ),
            "{text}"
        );
    }

    #[test]
    fn nothing_from_outside_makes_a_second_line() {
        assert!(!line().combined().contains('\n'));
        assert!(!serde_json::to_string(&line()).expect("serializes").contains('\n'));
    }

    #[test]
    fn what_was_queued_is_written_before_the_log_is_gone() {
        let folder = std::env::temp_dir().join(format!("llmproxy-access-{}", uuid::Uuid::now_v7()));
        let path = folder.join("access.log");
        let log = AccessLog::open(AccessFormat::Json, &AccessOutput::File(path.clone())).expect("opens");
        for _ in 0..100 {
            log.write(&line());
        }
        drop(log);
        let text = std::fs::read_to_string(&path).expect("is there");
        assert_eq!(text.lines().count(), 100);
        std::fs::remove_dir_all(folder).expect("is ours");
    }
}
