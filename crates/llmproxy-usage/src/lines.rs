//! A file of lines that are there as a whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Lines say who asked for what: they are their owner's.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o750;

/// A file that lines are appended to.
#[derive(Debug)]
pub(crate) struct LineFile(File);

// === impl LineFile ===

impl LineFile {
    /// Opens the file at `path`; it and its folder are made where they are missing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let is_new = !path.try_exists()?;
        if is_new && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        if is_new {
            sync_folder(path)?;
        }
        Ok(Self(file))
    }

    /// Whether `path` still leads to it; not after somebody has moved or removed it.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let ours = self.0.metadata()?;
        match fs::metadata(path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.0.metadata()
    }

    pub(crate) fn set_permissions(&self, permissions: fs::Permissions) -> io::Result<()> {
        self.0.set_permissions(permissions)
    }

    /// Appends `lines`, which end with a newline; with `sync` they are on the disk afterwards. After a line that was cut
    /// off, by a crash or a full disk, they begin on a new one. When it fails nothing of them is left.
    pub(crate) fn append(&mut self, lines: &[u8], sync: bool) -> io::Result<()> {
        // For those in this process who have opened the same file; where a file system has no locks, there is one writer.
        let _ = self.0.lock();
        let appended = self.append_locked(lines, sync);
        let _ = self.0.unlock();
        appended
    }

    fn append_locked(&mut self, lines: &[u8], sync: bool) -> io::Result<()> {
        let before = self.0.metadata()?.len();
        let appended = (|| {
            if self.is_cut_off(before)? {
                self.0.write_all(b"\n")?;
            }
            self.0.write_all(lines)?;
            if sync { self.0.sync_data() } else { Ok(()) }
        })();
        if appended.is_err() {
            // A part that stays all the same is a line of its own: the next ones begin on a new one.
            let _ = self.0.set_len(before);
        }
        appended
    }

    /// Whether its last line has no end.
    fn is_cut_off(&self, len: u64) -> io::Result<bool> {
        let Some(last) = len.checked_sub(1) else { return Ok(false) };
        let mut byte = [0];
        Ok(self.0.read_at(&mut byte, last)? == 1 && byte != *b"\n")
    }
}

/// A name is on the disk once its folder is.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        // Some file systems do not know that of folders.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::scratch::Folder;

    #[test]
    fn lines_after_one_that_was_cut_off_begin_on_a_new_one() {
        let folder = Folder::new();
        let path = folder.join("a/b/lines");
        LineFile::open(&path).unwrap().append(b"one\n", true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, FILE_MODE);
        fs::write(&path, "one\ntw").unwrap();
        let mut file = LineFile::open(&path).unwrap();
        file.append(b"three\n", false).unwrap();
        file.append(b"four\n", false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntw\nthree\nfour\n");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert!(LineFile::open(Path::new("/dev/null")).is_err());
    }

    /// On a file system of 64 KiB; where the test may not make one, it says that it was skipped.
    #[test]
    fn a_full_disk_leaves_nothing_of_what_did_not_fit() {
        let folder = Folder::new();
        let disk = folder.join("disk");
        fs::create_dir(&disk).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&disk).output();
        if !mount.is_ok_and(|mount| mount.status.success()) {
            println!("skipped: this test may not mount a small file system");
            return;
        }
        let path = disk.join("lines");
        let line = |size: usize| [vec![b'x'; size - 1], vec![b'\n']].concat();
        let mut file = LineFile::open(&path).unwrap();
        file.append(&line(40_000), false).unwrap();
        let full = file.append(&line(40_000), false);
        let left = fs::metadata(&path).unwrap().len();
        let after = file.append(&line(1000), true);
        drop(file);
        let unmounted = Command::new("umount").arg(&disk).status();
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(left, 40_000);
        after.unwrap();
        assert!(unmounted.unwrap().success());
    }
}
