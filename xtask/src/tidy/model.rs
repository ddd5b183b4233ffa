//! What the rules look at: the workspace as far as they care.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::cargo;

/// The workspace.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Names in the root folder, without what git ignores.
    pub(super) top: Vec<String>,
    /// The member crates.
    pub(super) crates: Vec<Crate>,
    /// Every Rust file.
    pub(super) sources: Vec<Source>,
}

/// A member crate.
#[derive(Debug)]
pub(super) struct Crate {
    /// Its package's name.
    pub(super) name: String,
    /// Its manifest, from the root.
    pub(super) manifest: PathBuf,
    /// Whether it has the workspace's lints.
    pub(super) inherits_lints: bool,
    /// What it depends on, of the workspace and of others.
    pub(super) dependencies: Vec<Dependency>,
}

/// A dependency as a manifest asks for it.
#[derive(Debug)]
pub(super) struct Dependency {
    /// The package's name, whatever it is called in the code.
    pub(super) name: String,
    /// What it is for.
    pub(super) kind: Kind,
    /// The features asked for, here or in the workspace.
    pub(super) features: Vec<String>,
}

/// What a dependency is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is linked in.
    Normal,
    /// It runs while building.
    Build,
    /// Tests, examples and benches use it.
    Dev,
}

/// A Rust file.
#[derive(Debug)]
pub(super) struct Source {
    /// From the root.
    pub(super) path: PathBuf,
    /// All of it.
    pub(super) text: String,
}

/// Where Rust files are looked for.
const SOURCES: &[&str] = &["bins", "crates", "examples", "xtask"];

// === impl Workspace ===

impl Workspace {
    /// Reads the workspace in `root`; asks cargo, and no network.
    pub(super) fn load(root: &Path) -> Result<Self, String> {
        let metadata = cargo::read(
            cargo::cargo(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root),
        )?;
        let mut workspace = Self { top: top(root)?, crates: crates(&metadata, root)?, sources: Vec::new() };
        for folder in SOURCES.iter().map(|name| root.join(name)).filter(|folder| folder.is_dir()) {
            read_sources(&folder, root, &mut workspace.sources)?;
        }
        workspace.sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(workspace)
    }
}

// === impl Dependency ===

impl Dependency {
    /// Whether it ends up in what is shipped, or in building that.
    pub(super) fn is_linked(&self) -> bool {
        self.kind != Kind::Dev
    }

    #[cfg(test)]
    pub(super) fn normal(name: &str) -> Self {
        Self { name: name.to_owned(), kind: Kind::Normal, features: Vec::new() }
    }
}

fn top(root: &Path) -> Result<Vec<String>, String> {
    let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim().trim_matches('/')).collect();
    let mut names = Vec::new();
    for path in entries(root)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !ignored.contains(&&*name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn crates(metadata: &str, root: &Path) -> Result<Vec<Crate>, String> {
    let metadata: Value =
        serde_json::from_str(metadata).map_err(|error| format!("cargo metadata is no JSON: {error}"))?;
    list(&metadata, "packages")?.iter().map(|package| read_crate(package, root)).collect()
}

fn read_crate(package: &Value, root: &Path) -> Result<Crate, String> {
    let manifest = Path::new(text(package, "manifest_path")?);
    let dependencies = list(package, "dependencies")?.iter().map(|dependency| {
        Ok(Dependency {
            name: text(dependency, "name")?.to_owned(),
            kind: match dependency["kind"].as_str() {
                None | Some("normal") => Kind::Normal,
                Some("build") => Kind::Build,
                Some("dev") => Kind::Dev,
                Some(other) => return Err(format!("cargo metadata has a dependency of the kind `{other}`")),
            },
            features: list(dependency, "features")?.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    });
    Ok(Crate {
        name: text(package, "name")?.to_owned(),
        manifest: manifest.strip_prefix(root).unwrap_or(manifest).to_owned(),
        inherits_lints: inherits_lints(&read(manifest)?),
        dependencies: dependencies.collect::<Result<_, String>>()?,
    })
}

/// Whether a manifest takes the workspace's lints, which cargo metadata does not tell.
fn inherits_lints(manifest: &str) -> bool {
    let mut in_lints = false;
    for line in manifest.lines() {
        let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        match &*line {
            "lints.workspace=true" => return true,
            "workspace=true" if in_lints => return true,
            table if table.starts_with('[') => in_lints = table == "[lints]",
            _ => {}
        }
    }
    false
}

fn read_sources(folder: &Path, root: &Path, sources: &mut Vec<Source>) -> Result<(), String> {
    for path in entries(folder)? {
        if path.is_dir() {
            read_sources(&path, root, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path)?;
            sources.push(Source { path: path.strip_prefix(root).unwrap_or(&path).to_owned(), text });
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error| format!("{} can't be read: {error}", folder.display());
    fs::read_dir(folder).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>, String> {
    value[key].as_array().ok_or_else(|| format!("cargo metadata has no list `{key}` where it should"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str, String> {
    value[key].as_str().ok_or_else(|| format!("cargo metadata has no text `{key}` where it should"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_read_as_it_is() {
        let workspace = Workspace::load(&cargo::root()).unwrap();
        let xtask = workspace.crates.iter().find(|krate| krate.name == "xtask").unwrap();
        assert_eq!(xtask.manifest, Path::new("xtask/Cargo.toml"));
        assert!(xtask.inherits_lints);
        assert!(xtask.dependencies.iter().any(|d| d.name == "serde_json" && d.kind == Kind::Normal));
        assert!(workspace.sources.iter().any(|source| source.path == Path::new("xtask/src/tidy/model.rs")));
        assert!(workspace.top.contains(&"Cargo.toml".to_owned()));
        assert!(!workspace.top.contains(&"target".to_owned()), "git ignores it, and so do we");
    }

    #[test]
    fn lints_count_only_in_their_own_table() {
        assert!(inherits_lints("[package]\nname = \"x\"\n\n[lints]\nworkspace = true\n"));
        assert!(inherits_lints("lints.workspace = true\n[package]\n"));
        assert!(!inherits_lints("[package]\nname = \"x\"\n"));
        assert!(!inherits_lints("[lints]\n[package]\nworkspace = true\n"));
        assert!(!inherits_lints("[dependencies]\nserde.workspace = true\n"));
    }

    #[test]
    fn metadata_of_another_shape_is_refused() {
        let root = Path::new("/");
        assert!(crates("no json", root).is_err());
        assert!(crates("{}", root).is_err());
        assert!(crates(r#"{"packages":[{}]}"#, root).is_err());
    }
}
