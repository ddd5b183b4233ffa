//! One file of many, and its sum.

use std::{fs, path::Path, process::Command};

use sha2::{Digest, Sha256};

use crate::cargo::run;

/// Packs the folder `name` in `parent` into `archive`; the same content makes the same archive.
pub(super) fn pack(parent: &Path, name: &str, archive: &Path) -> Result<(), String> {
    let mut tar = Command::new("tar");
    // Without -n, gzip would write down the time.
    tar.args([
        "--use-compress-program=gzip -n",
        "--sort=name",
        "--mode=u+rwX,go+rX,go-w",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
    ]);
    run(tar.arg("-cf").arg(archive).arg("-C").arg(parent).arg(name))
}

/// In hexadecimal digits.
pub(super) fn sha256(file: &Path) -> Result<String, String> {
    let bytes = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Others have another tar.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_same_content_makes_the_same_archive() {
        let folder = std::env::temp_dir().join(format!("llmproxy-xtask-{}", std::process::id()));
        fs::create_dir_all(folder.join("x")).unwrap();
        let sum = |name: &str| {
            fs::write(folder.join("x/a"), "a").unwrap();
            // Whatever the umask of whoever checked it out.
            let mode = if name.starts_with('1') { 0o600 } else { 0o664 };
            fs::set_permissions(folder.join("x/a"), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            pack(&folder, "x", &folder.join(name)).unwrap();
            sha256(&folder.join(name)).unwrap()
        };
        let (first, second) = (sum("1.tar.gz"), sum("2.tar.gz"));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(first, second);
        assert_eq!(first.len(), 64);
    }
}
