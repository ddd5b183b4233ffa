//! Files of records that are full, beside the one that is written to.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::lines::sync_folder;

/// In a file's name. Without colons, which not all file systems take.
const TIME: &str = "%Y%m%dT%H%M%S%.3fZ";
const PACKED: &str = "gz";
const DEFAULT_EXTENSION: &str = "jsonl";

/// Whoever packs or removes has it: two who pack the same file would spoil it. One for all, since a reporter of an old
/// configuration may still be at it when that of a new one begins.
static TIDYING: Mutex<()> = Mutex::new(());

/// Where full files go: `usage.jsonl` becomes `usage-20260123T103000.000Z.jsonl`, later with `.gz` behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backups {
    folder: PathBuf,
    stem: String,
    extension: String,
    /// How many are kept; all where it is 0.
    pub(crate) most: usize,
    /// How long each is kept; for ever where it is zero.
    pub(crate) max_age: Duration,
    /// Whether they are packed.
    pub(crate) compress: bool,
}

/// One of them.
#[derive(Debug)]
struct Backup {
    path: PathBuf,
    time: Timestamp,
    is_packed: bool,
}

// === impl Backups ===

impl Backups {
    /// Those of the file at `path`, all of which are kept as they are.
    pub(crate) fn of(path: &Path) -> Self {
        let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
        Self {
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
            stem: text(path.file_stem()).unwrap_or_default(),
            extension: text(path.extension()).unwrap_or_else(|| DEFAULT_EXTENSION.to_owned()),
            most: 0,
            max_age: Duration::ZERO,
            compress: false,
        }
    }

    /// Moves the file at `path` to them.
    pub(crate) fn put_aside(&self, path: &Path, now: Timestamp) -> io::Result<()> {
        let mut time = now;
        let mut backup = self.path(time);
        // A clock may have been set back, and a file may be full within a millisecond.
        while backup.try_exists()? || packed(&backup).try_exists()? {
            time += Duration::from_millis(1);
            backup = self.path(time);
        }
        fs::rename(path, backup)?;
        sync_folder(path)
    }

    /// Removes those that are too many or too old, and packs the rest where that is wanted. Each step by itself, so
    /// that what fails or is cut off by a crash is made up for the next time.
    pub(crate) fn tidy(&self, now: Timestamp) -> io::Result<()> {
        let _turn = TIDYING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut backups = self.list()?;
        let too_many = if self.most == 0 { 0 } else { backups.len().saturating_sub(self.most) };
        let is_old = |backup: &Backup| {
            !self.max_age.is_zero()
                && Duration::try_from(now.duration_since(backup.time)).is_ok_and(|age| age > self.max_age)
        };
        let kept = backups.split_off(too_many);
        let (old, kept): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_old);
        for backup in backups.iter().chain(&old) {
            fs::remove_file(&backup.path)?;
        }
        for backup in kept.iter().filter(|backup| self.compress && !backup.is_packed) {
            pack(&backup.path)?;
        }
        Ok(())
    }

    /// All that are there, the oldest first. Files of other names are somebody else's.
    fn list(&self) -> io::Result<Vec<Backup>> {
        let folder = if self.folder.as_os_str().is_empty() { Path::new(".") } else { &*self.folder };
        let mut backups = Vec::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            if let Some((time, is_packed)) = file.file_name().to_str().and_then(|name| self.read(name)) {
                backups.push(Backup { path: file.path(), time, is_packed });
            }
        }
        backups.sort_by_key(|backup| backup.time);
        Ok(backups)
    }

    fn path(&self, time: Timestamp) -> PathBuf {
        self.folder.join(format!("{}-{}.{}", self.stem, time.strftime(TIME), self.extension))
    }

    /// The time in a name, and whether it is a packed one's.
    fn read(&self, name: &str) -> Option<(Timestamp, bool)> {
        let rest = name.strip_prefix(&*self.stem)?.strip_prefix('-')?;
        let (time, ending) = rest.split_once("Z.")?;
        let is_packed = match ending.strip_prefix(&*self.extension)? {
            "" => false,
            ".gz" => true,
            _ => return None,
        };
        let time = DateTime::strptime("%Y%m%dT%H%M%S%.f", time).ok()?;
        let time = TimeZone::UTC.to_timestamp(time).ok()?;
        // Only what would be written so.
        (self.path(time).file_name()?.to_str()? == name.strip_suffix(".gz").unwrap_or(name))
            .then_some((time, is_packed))
    }
}

fn packed(path: &Path) -> PathBuf {
    path.with_added_extension(PACKED)
}

/// Replaces the file by a packed one, which gets its name when it is whole and on the disk.
fn pack(path: &Path) -> io::Result<()> {
    let packed = packed(path);
    let unfinished = packed.with_added_extension("tmp");
    let mut from = File::open(path)?;
    let to = File::create(&unfinished)?;
    to.set_permissions(from.metadata()?.permissions())?;
    let mut encoder = GzEncoder::new(to, Compression::default());
    io::copy(&mut from, &mut encoder)?;
    let mut to = encoder.finish()?;
    to.flush()?;
    to.sync_all()?;
    fs::rename(unfinished, &packed)?;
    sync_folder(path)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::scratch::Folder;

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Three full files in a folder, the second within the millisecond of the first.
    fn three(folder: &Path) -> Backups {
        let path = folder.join("usage.jsonl");
        let backups = Backups::of(&path);
        for (index, time) in
            ["2026-01-23T10:30:00.5Z", "2026-01-23T10:30:00.5Z", "2026-01-25T00:00:00Z"].iter().enumerate()
        {
            fs::write(&path, format!("{index}\n")).unwrap();
            backups.put_aside(&path, at(time)).unwrap();
        }
        backups
    }

    const FIRST: &str = "usage-20260123T103000.500Z.jsonl";
    const SECOND: &str = "usage-20260123T103000.501Z.jsonl";
    const THIRD: &str = "usage-20260125T000000.000Z.jsonl";

    #[test]
    fn full_files_are_named_by_the_time() {
        let folder = Folder::new();
        let backups = three(&folder);
        assert_eq!(names(&folder), [FIRST, SECOND, THIRD]);
        backups.tidy(at("2030-01-01T00:00:00Z")).unwrap();
        assert_eq!(names(&folder), [FIRST, SECOND, THIRD], "all are kept unless told otherwise");
    }

    #[test]
    fn those_that_are_too_many_or_too_old_go_and_others_files_stay() {
        let folder = Folder::new();
        let mut backups = three(&folder);
        let others = ["usage-2026.jsonl", "usage-20260123T103000.5Z.jsonl", "usage-eu-20260123T103000.500Z.jsonl", "z"];
        for name in others {
            fs::write(folder.join(name), "").unwrap();
        }
        let mut check = |most: usize, age: u64, expected: &[&str]| {
            (backups.most, backups.max_age) = (most, Duration::from_secs(age));
            backups.tidy(at("2026-01-25T00:00:10Z")).unwrap();
            let mut all: Vec<_> = expected.iter().chain(&others).copied().collect();
            all.sort_unstable();
            assert_eq!(names(&folder), all);
        };
        check(3, 0, &[FIRST, SECOND, THIRD]);
        check(2, 0, &[SECOND, THIRD]);
        check(2, 3600, &[THIRD]);
        check(2, 5, &[]);
    }

    #[test]
    fn full_files_are_packed_and_one_that_was_cut_off_again() {
        let folder = Folder::new();
        let backups = Backups { compress: true, ..three(&folder) };
        fs::write(folder.join(format!("{FIRST}.gz.tmp")), "half").unwrap();
        backups.tidy(at("2026-01-25T00:00:10Z")).unwrap();
        assert_eq!(names(&folder), [FIRST, SECOND, THIRD].map(|name| format!("{name}.gz")));
        let mut text = String::new();
        GzDecoder::new(File::open(folder.join(format!("{SECOND}.gz"))).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "1\n");
        let few = Backups { most: 1, ..backups };
        few.tidy(at("2026-01-25T00:00:10Z")).unwrap();
        assert_eq!(names(&folder), [format!("{THIRD}.gz")], "packed ones count too");
    }
}
