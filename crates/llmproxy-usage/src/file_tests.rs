//! Records as lines of a file, also where others do something to it.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use llmproxy_core::{Endpoint, UsageRecord};
use serde_json::{Value, json};

use super::*;
use crate::{Entry, Report, ReportBatch, Verdict, scratch::Folder};

fn report(config: Value) -> FileReport {
    let config: FileConfig = serde_json::from_value(config).unwrap();
    FileReport::new("file".into(), FileTarget::compile(&config).unwrap(), Fields::default())
}

/// A record of some hundred bytes more than `size`.
fn entry(size: usize) -> Entry {
    let record = UsageRecord {
        request_id: uuid::Uuid::now_v7(),
        error: Some("x".repeat(size).into()),
        ..UsageRecord::new(Endpoint::of("/v1/chat/completions"))
    };
    Entry { record: Arc::new(record), request_body: None }
}

async fn deliver(report: &FileReport, entries: &[Entry]) {
    assert_eq!(report.report_batch(entries).await, Verdict::Delivered);
}

/// The records of a file, and how many lines are none.
fn read(path: &Path) -> (Vec<String>, usize) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let lines: Vec<Option<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
    let broken = lines.iter().filter(|line| line.is_none()).count();
    (lines.iter().flatten().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect(), broken)
}

fn ids(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.record.request_id.to_string()).collect()
}

/// The full ones, the oldest first.
fn backups(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.file_name().unwrap() != "usage.jsonl").collect();
    files.sort();
    files
}

#[tokio::test]
async fn records_are_lines_and_follow_those_that_are_there() {
    let folder = Folder::new();
    let path = folder.join("data/usage.jsonl");
    let entries = [entry(0), entry(0), entry(0)];
    deliver(&report(json!({ "path": path })), &entries[..2]).await;
    let again = report(json!({"path": path, "sync": true}));
    assert_eq!(again.report(entries[2].clone()).await, Verdict::Delivered);
    assert_eq!(read(&path), (ids(&entries), 0));
    let line = fs::read_to_string(&path).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), crate::to_json(&entries[0].record));
}

#[tokio::test]
async fn a_line_that_a_crash_cut_off_spoils_no_other() {
    let folder = Folder::new();
    let path = folder.join("usage.jsonl");
    let entries = [entry(0), entry(0)];
    deliver(&report(json!({ "path": path })), &entries[..1]).await;
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{}", &text[..20])).unwrap();
    deliver(&report(json!({ "path": path })), &entries[1..]).await;
    assert_eq!(read(&path), (ids(&entries), 1));
}

#[tokio::test]
async fn a_file_that_was_moved_removed_or_emptied_is_noticed() {
    let folder = Folder::new();
    let path = folder.join("usage.jsonl");
    let report = report(json!({ "path": path }));
    let entries = [entry(0), entry(0), entry(0), entry(0)];
    deliver(&report, &entries[..1]).await;
    fs::rename(&path, folder.join("usage.jsonl.1")).unwrap();
    deliver(&report, &entries[1..2]).await;
    assert_eq!(read(&folder.join("usage.jsonl.1")).0, ids(&entries[..1]));
    assert_eq!(read(&path).0, ids(&entries[1..2]));
    fs::remove_file(&path).unwrap();
    deliver(&report, &entries[2..3]).await;
    assert_eq!(read(&path).0, ids(&entries[2..3]));
    // As logrotate does with copytruncate.
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    deliver(&report, &entries[3..]).await;
    assert_eq!(read(&path), (ids(&entries[3..]), 0));
}

#[tokio::test]
async fn a_full_file_is_put_aside_and_no_record_is_cut_in_two() {
    let folder = Folder::new();
    let path = folder.join("usage.jsonl");
    let report = report(json!({"path": path, "max_size": 64 << 10}));
    let entries: Vec<_> = (0..5).map(|_| entry(30_000)).collect();
    deliver(&report, &entries[..1]).await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    for entry in &entries[1..] {
        deliver(&report, std::slice::from_ref(entry)).await;
    }
    let full = backups(&folder);
    assert_eq!(full.len(), 2, "{full:?}");
    let all: Vec<_> = full.iter().chain([&path]).flat_map(|path| read(path).0).collect();
    assert_eq!(all, ids(&entries));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    // More than a file may hold is in one all the same.
    deliver(&report, &[entry(100_000)]).await;
    assert_eq!(read(&path).0.len(), 1);
    assert_eq!(backups(&folder).len(), 3);
}

#[tokio::test]
async fn a_file_that_is_old_is_full() {
    let folder = Folder::new();
    let path = folder.join("usage.jsonl");
    let config: FileConfig = serde_json::from_value(json!({"path": path, "max_age": "1h"})).unwrap();
    let target = FileTarget::compile(&config).unwrap();
    let mut file = LineFile::open(&path).unwrap();
    let is_full =
        |file: &LineFile, later: u64| target.is_full(file, 1, Timestamp::now() + Duration::from_secs(later)).unwrap();
    assert!(!is_full(&file, 4000), "an empty one never is");
    file.append(b"{}\n", false).unwrap();
    assert!(!is_full(&file, 3000));
    if file.metadata().unwrap().created().is_err() {
        println!("skipped: this file system does not know when a file was made");
        return;
    }
    assert!(is_full(&file, 4000));
}

#[tokio::test]
async fn full_files_are_packed_and_only_so_many_are_kept() {
    let folder = Folder::new();
    let path = folder.join("usage.jsonl");
    let report = report(json!({"path": path, "max_size": 64 << 10, "max_backups": 2, "compress": true}));
    for _ in 0..5 {
        deliver(&report, &[entry(60_000)]).await;
    }
    let is_done = || {
        let full = backups(&folder);
        full.len() == 2 && full.iter().all(|path| path.extension().unwrap() == "gz")
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_done() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", backups(&folder));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_can_not_be_written_is_tried_again_and_says_where() {
    let folder = Folder::new();
    let path = folder.join("usage.jsonl");
    fs::create_dir(&path).unwrap();
    let report = report(json!({ "path": path }));
    let Verdict::Again { why, .. } = report.report_batch(&[entry(0)]).await else { panic!() };
    assert!(why.contains(&*path.to_string_lossy()), "{why}");
    fs::remove_dir(&path).unwrap();
    deliver(&report, &[entry(0)]).await;
}

#[test]
fn mistakes_are_told_with_their_keys() {
    let check = |config: Value, expected: &[&str]| {
        let wrong = FileTarget::compile(&serde_json::from_value(config.clone()).unwrap()).err().unwrap_or_default();
        assert_eq!(wrong.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), expected, "{config}");
    };
    check(json!({}), &["path"]);
    check(json!({"path": "data/"}), &["path"]);
    check(json!({"path": ".."}), &["path"]);
    check(json!({"path": "usage.jsonl", "max_size": 100}), &["max_size"]);
    check(json!({"path": "usage.jsonl", "max_size": 0}), &[]);
}

#[test]
fn records_wait_without_end() {
    let folder = Folder::new();
    let file = report(json!({"path": folder.join("usage.jsonl")}));
    let stdout = crate::stdout::StdoutReport::new("stdout".into(), Fields::default());
    assert_eq!((file.max_age(), stdout.max_age()), (Duration::MAX, Duration::MAX));
}
