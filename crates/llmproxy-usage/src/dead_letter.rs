//! The file that keeps records which a reporter could not deliver.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use crate::{Entry, fields::Fields, json, lines::LineFile, read::Delivered};

/// A file of JSON lines, one for each record: `{"time":..,"reporter":..,"reason":..,"record":{..}}`. The record has all
/// its fields, whatever the reporter sends of them, so that it can be sent again.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetters {
    path: PathBuf,
    /// Not more than one thread waits for the disk.
    turn: Arc<Mutex<()>>,
}

// === impl DeadLetters ===

impl DeadLetters {
    /// Those in the file at `path`, which is made with its folder when there is something to keep.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, turn: Arc::default() }
    }

    /// Appends `entries`. They are on the disk when it returns; when it fails, none of them is there.
    ///
    /// # Errors
    ///
    /// Where the file can't be made, opened or written, with its path.
    ///
    /// # Cancel safety
    ///
    /// What has begun is finished without it, so that entries which are appended again may be there twice.
    pub(crate) async fn append(&self, reporter: &str, reason: &str, entries: &[Entry]) -> io::Result<()> {
        let mut lines = Vec::new();
        let (time, all) = (Timestamp::now(), Fields::default());
        for entry in entries {
            // In pieces, because a record is written straight into a buffer.
            let (reporter, reason) = (json!(reporter), json!(reason));
            let head = format!(r#"{{"time":"{time}","reporter":{reporter},"reason":{reason},"record":"#);
            lines.extend_from_slice(head.as_bytes());
            json::write(&mut lines, entry, &all);
            lines.extend_from_slice(b"}\n");
        }
        let turn = self.turn.clone().lock_owned().await;
        let path = self.path.clone();
        let appended = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            LineFile::open(&path).and_then(|mut file| file.append(&lines, true)).map_err(|error| {
                let what = format!("the dead letters of {} can't be kept: {error}", path.display());
                io::Error::new(error.kind(), what)
            })
        });
        appended.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }
}

/// Reads a file of dead letters.
#[derive(Debug)]
pub(crate) struct Letters {
    lines: BufReader<File>,
    /// Whose are read.
    reporter: Arc<str>,
    number: u64,
    /// Lines that are none.
    pub(crate) unreadable: u64,
}

#[derive(Deserialize)]
struct Letter {
    record: Delivered,
    reporter: String,
}

// === impl Letters ===

impl Letters {
    /// Those of `reporter` in the file at `path`.
    pub(crate) fn open(path: &Path, reporter: Arc<str>) -> io::Result<Self> {
        Ok(Self { lines: BufReader::new(File::open(path)?), reporter, number: 0, unreadable: 0 })
    }

    /// Those of the next `limit` lines; `None` at the end.
    pub(crate) fn read(&mut self, limit: usize) -> io::Result<Option<Vec<Entry>>> {
        let mut entries = Vec::new();
        let mut line = Vec::new();
        for read in 0..limit {
            line.clear();
            if self.lines.read_until(b'\n', &mut line)? == 0 {
                return Ok((read > 0).then_some(entries));
            }
            self.number += 1;
            let letter = serde_json::from_slice::<Letter>(&line).map_err(|error| error.to_string());
            let letter = letter.and_then(|letter| Ok((letter.reporter, letter.record.into_entry()?)));
            match letter {
                Ok((reporter, entry)) if reporter == *self.reporter => entries.push(entry),
                Ok(_) => {}
                // A crash may have cut one off, and those that follow are whole.
                Err(why) => {
                    self.unreadable += 1;
                    tracing::warn!(line = self.number, why, "a dead letter can't be read and is passed over");
                }
            }
        }
        Ok(Some(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use llmproxy_core::{Endpoint, UsageRecord};
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;
    use crate::scratch::Folder;

    fn entry() -> Entry {
        let record =
            UsageRecord { request_id: Uuid::now_v7(), ..UsageRecord::new(Endpoint::of("/v1/chat/completions")) };
        Entry { record: Arc::new(record), request_body: None }
    }

    #[tokio::test]
    async fn what_is_given_up_is_kept_with_the_reason() {
        let folder = Folder::new();
        let path = folder.join("new/dead.jsonl");
        let letters = DeadLetters::new(path.clone());
        let entries = [entry(), entry(), entry()];
        letters.append("billing", "the receiver answered \"no\"", &entries[..2]).await.unwrap();
        // As a crash in the middle of a line would leave it.
        let half = fs::read_to_string(&path).unwrap();
        fs::write(&path, &half[..half.len() - 10]).unwrap();
        letters.append("billing", "old", &entries[2..]).await.unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Option<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(lines.len(), 3, "{text}");
        let first = lines[0].as_ref().unwrap();
        assert_eq!(first["reporter"], "billing");
        assert_eq!(first["reason"], "the receiver answered \"no\"");
        assert_eq!(first["record"], crate::to_json(&entries[0].record));
        assert!(first["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
        assert_eq!(lines[1], None);
        assert_eq!(lines[2].as_ref().unwrap()["record"]["request_id"], entries[2].record.request_id.to_string());
    }

    #[tokio::test]
    async fn a_failure_names_the_file() {
        let folder = Folder::new();
        let error = DeadLetters::new(folder.to_path_buf()).append("a", "b", &[entry()]).await.unwrap_err();
        assert!(error.to_string().contains(&*folder.to_string_lossy()), "{error}");
    }

    #[tokio::test]
    async fn those_who_share_a_file_do_not_mix_their_lines() {
        let folder = Folder::new();
        let path = folder.join("dead.jsonl");
        let tasks = (0..8).map(|_| {
            let letters = DeadLetters::new(path.clone());
            tokio::spawn(async move {
                for _ in 0..20 {
                    letters.append("a", "b", &[entry(), entry()]).await.unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 320);
        assert_eq!(text.lines().count(), 320);
    }
}
