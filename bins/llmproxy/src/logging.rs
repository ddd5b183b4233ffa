//! The proxy's own log, as `log.*` says.

use std::{
    fmt::{self, Write},
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::Mutex,
};

use llmproxy_config::{LogConfig, LogFormat, LogOutput};
use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    filter::Targets,
    fmt::{FormatFields, FormattedFields, format::Writer, writer::BoxMakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Installs the subscriber for the process.
///
/// # Errors
///
/// If the log's file can't be opened, or there is a subscriber already.
pub(crate) fn init(config: &LogConfig) -> Result<(), String> {
    let writer = match &config.target() {
        LogOutput::Stdout => BoxMakeWriter::new(io::stdout),
        LogOutput::Stderr => BoxMakeWriter::new(io::stderr),
        LogOutput::File(path) => {
            let file = open(path)
                .map_err(|error| {
                    format!(
                        "the log {} (log.output) can't be opened: {error}; name a file that the user that runs llmproxy may \
                         write, or set log.output to stdout",
                        path.display()
                    )
                })?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    // Other crates speak only when something is wrong. Ours all have names that begin alike. No filter by what is in a span
    // is offered, and the one that could do so costs something whenever a span is entered.
    let filter: Targets = format!("warn,llmproxy={}", config.level.as_str())
        .parse()
        .map_err(|error| format!("log.level can't be used: {error}"))?;
    let base = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).fmt_fields(JsonMembers);
            base.with(layer.with_writer(writer)).try_init()
        }
        LogFormat::Text => base.with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer)).try_init(),
    }
    .map_err(|error| format!("the log can't be set up: {error}"))
}

/// Writes a span's fields as a JSON object. The library's own way collects them in a map first; every request has a span,
/// and nearly none of them is ever logged in.
struct JsonMembers;

struct Members {
    text: String,
    separator: char,
}

/// Text on its way into a JSON string.
struct Escaped<'a>(&'a mut String);

/// Opens the file for writing at its end, making the folders that are missing.
fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("its folder {} can't be made: {error}", folder.display()))
        })?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

// === impl JsonMembers ===

impl<'writer> FormatFields<'writer> for JsonMembers {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut members = Members { text: String::with_capacity(64), separator: '{' };
        fields.record(&mut members);
        writer.write_str(&members.finish())
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let mut members = Members { text: std::mem::take(&mut current.fields), separator: ',' };
        if members.text.pop() != Some('}') || members.text == "{" {
            members.text.clear();
            members.separator = '{';
        }
        fields.record(&mut members);
        current.fields = members.finish();
        Ok(())
    }
}

// === impl Members ===

impl Members {
    fn member(&mut self, name: &str, quoted: bool, value: fmt::Arguments<'_>) {
        self.text.push(std::mem::replace(&mut self.separator, ','));
        self.text.push('"');
        self.text.push_str(name.strip_prefix("r#").unwrap_or(name));
        self.text.push_str("\":");
        // Writing to a string fails only where the value says so itself; then there is less of it.
        let _ = if quoted {
            self.text.push('"');
            let written = Escaped(&mut self.text).write_fmt(value);
            self.text.push('"');
            written
        } else {
            self.text.write_fmt(value)
        };
    }

    fn finish(mut self) -> String {
        self.text.push_str(if self.separator == '{' { "{}" } else { "}" });
        self.text
    }
}

impl Visit for Members {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field.name(), false, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field.name(), false, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field.name(), false, format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no other numbers.
        if value.is_finite() {
            self.member(field.name(), false, format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field.name(), true, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field.name(), true, format_args!("{value:?}"));
    }
}

// === impl Escaped ===

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
            self.0.push_str(text);
            return Ok(());
        }
        for char in text.chars() {
            match char {
                '"' | '\\' => self.0.extend(['\\', char]),
                char if char < ' ' => write!(self.0, "\\u{:04x}", u32::from(char))?,
                char => self.0.push(char),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_span_in_the_json_log_is_json_whatever_its_fields_are() {
        let lines = Lines::default();
        let written = lines.clone();
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).fmt_fields(JsonMembers);
        let layer = layer.with_writer(move || written.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("request", id = %"a\"b\\\n", n = 3, yes = true, text = "x", late = tracing::field::Empty);
            span.record("late", 1.5);
            let _entered = span.enter();
            let plain = tracing::info_span!("plain");
            let _inside = plain.enter();
            tracing::info!("hello");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let spans = serde_json::json!([
            {"name": "request", "id": "a\"b\\\n", "n": 3, "yes": true, "text": "x", "late": 1.5},
            {"name": "plain"},
        ]);
        assert_eq!(line["spans"], spans, "{line}");
    }
}
