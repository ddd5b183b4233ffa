//! Records as lines of the standard output.

use std::{
    fmt,
    io::{self, Write},
    sync::Arc,
};

use tokio::sync::Mutex;

use crate::{
    fields::Fields,
    line_report::{LineReport, WriteLines},
};

/// What is written at a time: somebody is reading along.
const BATCH_SIZE: usize = 100;

/// The standard output as a reporter.
pub(crate) type StdoutReport = LineReport<Output>;

/// Writes lines to it.
pub(crate) struct Output {
    writer: Box<dyn Write + Send>,
    /// Whether the last write failed, and so may have left a piece of a line.
    is_cut_off: bool,
}

// === impl StdoutReport ===

impl StdoutReport {
    pub(crate) fn new(name: Arc<str>, fields: Fields) -> Self {
        Self::over(name, fields, Box::new(io::stdout()))
    }

    fn over(name: Arc<str>, fields: Fields, writer: Box<dyn Write + Send>) -> Self {
        let writer = Arc::new(Mutex::new(Output { writer, is_cut_off: false }));
        Self { name, fields, to: "the standard output".to_owned(), batch_size: BATCH_SIZE, writer }
    }
}

// === impl Output ===

impl WriteLines for Output {
    /// The logs may go to the same place.
    fn write(&mut self, mut lines: Vec<u8>) -> io::Result<()> {
        if self.is_cut_off {
            lines.insert(0, b'\n');
        }
        let written = self.writer.write_all(&lines).and_then(|()| self.writer.flush());
        self.is_cut_off = written.is_err();
        written
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("is_cut_off", &self.is_cut_off).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use llmproxy_core::{Endpoint, UsageRecord};
    use serde_json::Value;

    use super::*;
    use crate::{Entry, Report, ReportBatch, Verdict};

    /// Takes so many bytes, then breaks once, then takes all.
    #[derive(Clone, Default)]
    struct Pipe(Arc<StdMutex<(Option<usize>, Vec<u8>)>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (left, taken) = &mut *self.0.lock().unwrap();
            let size = match left {
                Some(0) => {
                    *left = None;
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Some(left) => {
                    let size = bytes.len().min(*left);
                    *left -= size;
                    size
                }
                None => bytes.len(),
            };
            taken.extend_from_slice(&bytes[..size]);
            Ok(size)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_pipe_that_breaks_costs_no_line_and_glues_none() {
        let pipe = Pipe::default();
        let report = StdoutReport::over("stdout".into(), Fields::default(), Box::new(pipe.clone()));
        let record = Arc::new(UsageRecord::new(Endpoint::of("/v1/chat/completions")));
        let entries = [(); 3].map(|()| Entry { record: record.clone(), request_body: None });
        assert_eq!(report.report_batch(&entries).await, Verdict::Delivered);
        pipe.0.lock().unwrap().0 = Some(1000);
        let Verdict::Again { why, .. } = report.report_batch(&entries).await else { panic!() };
        assert!(why.contains("standard output"), "{why}");
        assert_eq!(report.report(entries[0].clone()).await, Verdict::Delivered);
        let text = String::from_utf8(pipe.0.lock().unwrap().1.clone()).unwrap();
        let whole: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let expected = crate::to_json(&record);
        assert!(whole.iter().all(|line| *line == expected), "{text}");
        // Of the second batch as many as the pipe took before it broke.
        assert_eq!(whole.len(), 4 + 1000 / (expected.to_string().len() + 1), "{text}");
    }
}
