//! Files of the configuration that two things would write.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use crate::{
    ReporterConfig, UsageConfig,
    config::{FILE, WEBHOOK},
};

/// What SQLite and we have beside the ledger.
const BESIDE: [&str; 5] = ["", "-wal", "-shm", "-journal", ".lock"];

/// Those of the reporters in use: the key's path below `usage`, and what is wrong with it.
pub(crate) fn clashes(config: &UsageConfig) -> Vec<(String, String)> {
    let ledger = of_ledger(&config.ledger.path);
    let mut wrong = Vec::new();
    let mut files = BTreeSet::new();
    for (index, reporter) in config.reporters.iter().enumerate().filter(|(_, reporter)| reporter.enabled) {
        let Some((key, path)) = file(reporter) else { continue };
        let path = normal(path);
        let is_file = reporter.kind == FILE;
        let what = if ledger.contains(&path) {
            "is a file of the usage ledger (usage.ledger.path), which nothing else may write; name another"
        } else if is_file && !files.insert(path) {
            "is the file of another reporter too"
        } else {
            continue;
        };
        wrong.push((format!("reporters[{index}].{key}"), what.to_owned()));
    }
    wrong
}

/// Whether `path` is that of the ledger or of what is beside it.
pub(crate) fn is_of_ledger(config: &UsageConfig, path: &Path) -> bool {
    of_ledger(&config.ledger.path).contains(&normal(path))
}

/// The file that it writes, by the key that names it.
fn file(reporter: &ReporterConfig) -> Option<(&'static str, &Path)> {
    let (key, path) = match &*reporter.kind {
        FILE => ("file.path", &reporter.file.path),
        WEBHOOK => ("webhook.dead_letter", &reporter.webhook.dead_letter),
        _ => return None,
    };
    (!path.as_os_str().is_empty()).then_some((key, path))
}

fn of_ledger(path: &Path) -> Vec<PathBuf> {
    let path = normal(path);
    let beside = |suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    };
    BESIDE.into_iter().map(beside).collect()
}

/// One spelling of each path, without a look at the disk, where it may not be yet.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            component => normal.push(component),
        }
    }
    normal
}
