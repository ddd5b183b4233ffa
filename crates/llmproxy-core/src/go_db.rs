//! Where our admin database stands when there is one of the Go program in its place.

use std::path::{Path, PathBuf};

/// The file beside `path` that is ours when the one at `path` is the Go program's, which is only read: the keys and the usage
/// records are in one file, so that all who open it must go by this.
///
/// ```
/// use std::path::Path;
///
/// let ours = llmproxy_core::go_db::beside(Path::new("./data/keys.db"));
/// assert_eq!(ours, Path::new("./data/keys.llmproxy.db"));
/// ```
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(".llmproxy");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_file_stands_beside_the_old_one() {
        let check = |path: &str, expected: &str| assert_eq!(beside(Path::new(path)), Path::new(expected));
        check("./data/keys.db", "./data/keys.llmproxy.db");
        check("keys.db", "keys.llmproxy.db");
        check("/var/keys", "/var/keys.llmproxy");
        check("a.b/keys.v1.sqlite", "a.b/keys.v1.llmproxy.sqlite");
    }
}
