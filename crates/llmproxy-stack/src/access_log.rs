//! Where access lines go: a bounded queue and one thread that writes.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use tokio::sync::watch;

use llmproxy_config::{AccessFormat, AccessOutput};

use crate::metrics::ACCESS_LOG_DROPPED;

/// Lines that may wait to be written; past that they are dropped and counted, since a slow disk must not slow answers.
const QUEUE: usize = 8192;

/// After lines were written, so long pass before the next are. While the thread is not waiting for one, a line costs the
/// request neither a wake-up nor a change of threads, and all that came meanwhile are one write.
const PAUSE: Duration = Duration::from_millis(10);

/// The access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    format: AccessFormat,
    lines: SyncSender<String>,
    /// Open until the last line is written.
    written: watch::Receiver<()>,
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
        let (end, written) = watch::channel(());
        // The thread ends when the queue is closed and empty. Nobody joins it: the last handle may go in the middle of a
        // request's end, and whoever reads the lines may have stopped reading.
        thread::Builder::new().name("access-log".into()).spawn(move || {
            let _end = end;
            write_all(&queue, sink);
        })?;
        Ok(Self { format, lines, written })
    }

    /// Queues a line; drops and counts it when the queue is full.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let mut text = match self.format {
            AccessFormat::Json => line.json(),
            AccessFormat::Combined => line.combined(),
        };
        // Part of the line, so that a line is written in one piece: the program's own log may go to the same place.
        text.push('\n');
        if self.lines.try_send(text).is_err() {
            metrics::counter!(ACCESS_LOG_DROPPED).increment(1);
        }
    }

    /// Gives the log up and waits until what was queued is written, for `deadline` at most; false if that was too short.
    ///
    /// # Cancel safety
    ///
    /// It only waits: the lines are written without it.
    pub(crate) async fn close(self: Arc<Self>, deadline: Duration) -> bool {
        let mut written = self.written.clone();
        drop(self);
        // Nothing is ever sent: what is waited for is that the thread is gone.
        tokio::time::timeout(deadline, written.changed()).await.is_ok()
    }
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("its folder {} can't be made: {error}", folder.display()))
        })?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_all(queue: &Receiver<String>, sink: Box<dyn Write + Send>) {
    let mut sink = BufWriter::new(sink);
    while let Ok(line) = queue.recv() {
        let mut next = Some(line);
        while let Some(line) = next {
            if let Err(error) = sink.write_all(line.as_bytes()) {
                report(&error);
            }
            next = queue.try_recv().ok();
        }
        if let Err(error) = sink.flush() {
            report(&error);
        }
        thread::sleep(PAUSE);
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
    fn json(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        // JSON escapes the control characters of ASCII but one, and none of those behind it, of which some begin an escape
        // sequence for a terminal. All are written with one of these bytes; nearly no line has any.
        if !text.bytes().fold(false, |any, byte| any | matches!(byte, 0x7f | 0xc2)) {
            return text;
        }
        let mut escaped = String::with_capacity(text.len() + 16);
        for c in text.chars() {
            match c {
                c if c.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => escaped.push(c),
            }
        }
        escaped
    }

    fn combined(&self) -> String {
        let ip = self.client_ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let user = self.user_id.unwrap_or("-");
        let zoned = self.timestamp.to_zoned_datetime(TimeZone::system());
        let mut line = format!(
            "{ip} - {} [{}] \"{} {}\" {} {}ms \"{}\" model={} stream={}",
            Word(user),
            zoned.strftime("%d/%b/%Y:%H:%M:%S %z"),
            self.method,
            Plain(self.path),
            self.status_code,
            self.latency_ms,
            self.backend_url.unwrap_or("-"),
            Word(self.model.unwrap_or("-")),
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

/// The same where there are no quotes around it: a space would end it.
struct Word<'a>(&'a str);

impl std::fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, word) in self.0.split(char::is_whitespace).enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "_" }, Plain(word))?;
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
            model: Some("evil\"\u{1}model stream=false"),
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
                "\"POST /v1/chat/completions\" 200 12ms \"http://vllm:8000\" model=evil\\\"\\u{1}model_stream=false stream=true"
            ),
            "{text}"
        );
    }

    #[test]
    fn nothing_from_outside_makes_a_second_line_or_moves_a_terminal_s_cursor() {
        let line = Line { model: Some("a\nb"), user_id: Some("a\r\nb"), path: "/a\nb", error: Some("a\nb"), ..line() };
        let evil = Line {
            model: Some("\u{1b}[2J\u{7f}"),
            user_id: Some("\u{9b}2J"),
            path: "/\u{85}\u{e9}\u{b5}",
            error: Some("\0"),
            ..self::line()
        };
        for line in [line, evil] {
            let (combined, json) = (line.combined(), line.json());
            assert!(!combined.contains(char::is_control) && !json.contains(char::is_control), "{combined} {json}");
            let read: serde_json::Value = serde_json::from_str(&json).expect("JSON stays JSON");
            let fields =
                [("model", line.model), ("user_id", line.user_id), ("path", Some(line.path)), ("error", line.error)];
            for (name, value) in fields {
                assert_eq!(read[name].as_str(), value, "{json}");
            }
        }
    }

    /// Keeps what each call wrote.
    #[derive(Clone, Default)]
    struct Writes(Arc<std::sync::Mutex<Vec<Vec<u8>>>>);

    impl Write for Writes {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").push(data.to_vec());
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_write_ends_inside_a_line_as_others_may_write_to_the_same_place() {
        let writes = Writes::default();
        let (lines, queue) = sync_channel(QUEUE);
        for length in 0..1000 {
            lines.send("x".repeat(length) + "\n").expect("there is room");
        }
        drop(lines);
        write_all(&queue, Box::new(writes.clone()));
        let writes = writes.0.lock().expect("no panic");
        assert!(writes.len() < 100, "lines are not written one by one");
        assert!(writes.iter().all(|write| write.ends_with(b"\n")));
    }

    #[tokio::test]
    async fn what_was_queued_is_written_before_the_log_is_closed() {
        let folder = std::env::temp_dir().join(format!("llmproxy-access-{}", uuid::Uuid::now_v7()));
        let path = folder.join("access.log");
        let log = AccessLog::open(AccessFormat::Json, &AccessOutput::File(path.clone())).expect("opens");
        for _ in 0..100 {
            log.write(&line());
        }
        assert!(Arc::new(log).close(Duration::from_secs(10)).await);
        let text = std::fs::read_to_string(&path).expect("is there");
        assert_eq!(text.lines().count(), 100);
        std::fs::remove_dir_all(folder).expect("is ours");
    }
}
