//! The file that keeps records which a reporter could not deliver.

use std::{io, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Mutex;

use crate::{Entry, fields::Fields, json, lines::LineFile};

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
