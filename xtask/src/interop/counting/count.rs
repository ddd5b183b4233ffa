//! A second count of the same tokens, by a program that shares nothing with the proxy.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{cargo::root, interop::scratch::Scratch};

/// How long one count may take; the first one begins with the start of the program.
const PATIENCE: Duration = Duration::from_secs(30);

/// The running program; killed when dropped.
pub(super) struct Count {
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

// === impl Count ===

impl Count {
    pub(super) fn start(scratch: &Scratch) -> Result<Self, String> {
        let mut child = Command::new(scratch.python_program())
            .arg(root().join("xtask/interop/count.py"))
            .arg(scratch.model("tokenizer.json"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("count.py: {error}"))?;
        let (Some(questions), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        Ok(Self { questions, answers: BufReader::new(stdout).lines(), _child: child })
    }

    /// The tokens of what a model has answered.
    pub(super) async fn answer(&mut self, text: &str) -> Result<u64, String> {
        self.ask(&json!({"answer": text})).await
    }

    /// The tokens of a chat's prompt.
    pub(super) async fn chat(&mut self, request: &Value) -> Result<u64, String> {
        self.ask(&json!({"chat": request})).await
    }

    async fn ask(&mut self, question: &Value) -> Result<u64, String> {
        let wrong = |error: std::io::Error| format!("count.py: {error}");
        self.questions.write_all(format!("{question}\n").as_bytes()).await.map_err(wrong)?;
        let line = timeout(PATIENCE, self.answers.next_line()).await.map_err(|_| "count.py does not answer")?;
        let line = line.map_err(wrong)?.ok_or("count.py has ended")?;
        line.parse().map_err(|error| format!("count.py: {error}: {line}"))
    }
}
