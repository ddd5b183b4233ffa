//! Which packages are linked into the binary, as cargo says.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_json::Value;

use crate::cargo::{cargo, read};

/// All packages, and which of them are linked.
pub(super) struct Metadata {
    /// Where cargo puts what it builds.
    pub(super) target_folder: PathBuf,
    packages: BTreeMap<String, Package>,
    linked: BTreeSet<String>,
}

/// One package.
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// An SPDX expression.
    pub(super) licence: Option<String>,
    pub(super) authors: Vec<String>,
    /// Where it is developed.
    pub(super) repository: Option<String>,
    /// Where its sources are.
    pub(super) folder: PathBuf,
    is_ours: bool,
}

// === impl Metadata ===

impl Metadata {
    /// What is linked into llmproxy for `target`.
    pub(super) fn read(target: &str) -> Result<Self, String> {
        let words = ["metadata", "--format-version", "1", "--locked", "--filter-platform", target];
        let json: Value = serde_json::from_str(&read(&mut cargo(words))?).map_err(|error| error.to_string())?;
        let packages: BTreeMap<String, Package> = list(&json["packages"])
            .filter_map(|package| Some((text(&package["id"])?, Package::read(package)?)))
            .collect();
        let root = packages.iter().find(|(_, package)| package.name == "llmproxy").map(|(id, _)| id.clone());
        let arrows: BTreeMap<&str, Vec<&str>> = list(&json["resolve"]["nodes"])
            .filter_map(|node| Some((node["id"].as_str()?, list(&node["deps"]).filter_map(linked).collect())))
            .collect();
        let mut reached = BTreeSet::new();
        let mut next: Vec<String> = root.into_iter().collect();
        while let Some(id) = next.pop() {
            next.extend(arrows.get(&*id).into_iter().flatten().map(|id| (*id).to_owned()));
            if !reached.insert(id) {
                continue;
            }
            next.retain(|id| !reached.contains(id));
        }
        let target_folder = PathBuf::from(json["target_directory"].as_str().ok_or("cargo names no target folder")?);
        Ok(Self { target_folder, packages, linked: reached })
    }

    /// The version of one package.
    pub(super) fn version(&self, name: &str) -> Result<&str, String> {
        let package = self.packages.values().find(|package| package.name == name);
        package.map(|package| &*package.version).ok_or_else(|| format!("there is no package {name}"))
    }

    /// The members of this workspace.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.values().filter(|package| package.is_ours)
    }

    /// All packages that are in the binary, ours included, by name.
    pub(super) fn linked(&self) -> impl Iterator<Item = &Package> {
        let mut packages: Vec<&Package> = self.linked.iter().filter_map(|id| self.packages.get(id)).collect();
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        packages.into_iter()
    }
}

/// The dependency's id, if it is linked: not one of tests only, nor one that runs while building.
fn linked(dependency: &Value) -> Option<&str> {
    let is_linked = list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
    dependency["pkg"].as_str().filter(|_| is_linked)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

// === impl Package ===

impl Package {
    /// Whether `other` is another package of the same project, on the same terms.
    pub(super) fn is_sibling(&self, other: &Self) -> bool {
        self.name != other.name
            && self.repository.is_some()
            && (&self.repository, &self.licence) == (&other.repository, &other.licence)
    }

    fn read(json: &Value) -> Option<Self> {
        let mut folder = PathBuf::from(json["manifest_path"].as_str()?);
        folder.pop();
        Some(Self {
            name: text(&json["name"])?,
            version: text(&json["version"])?,
            licence: text(&json["license"]),
            repository: text(&json["repository"]),
            authors: list(&json["authors"]).filter_map(text).collect(),
            folder,
            is_ours: json["source"].is_null(),
        })
    }

    /// Whether it is part of this workspace.
    pub(super) fn is_ours(&self) -> bool {
        self.is_ours
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn siblings_are_of_one_project_and_on_the_same_terms() {
        let package = |name: &str, repository: Value, licence: &str| {
            let json = json!({"name": name, "version": "1", "license": licence, "repository": repository, "manifest_path": "/a/Cargo.toml"});
            Package::read(&json).expect("a package")
        };
        let one = package("a", json!("https://a.example"), "BSD-3-Clause");
        assert!(one.is_sibling(&package("b", json!("https://a.example"), "BSD-3-Clause")));
        assert!(!one.is_sibling(&package("a", json!("https://a.example"), "BSD-3-Clause")));
        assert!(!one.is_sibling(&package("b", json!("https://b.example"), "BSD-3-Clause")));
        assert!(!one.is_sibling(&package("b", json!("https://a.example"), "MIT")));
        let nowhere = package("a", Value::Null, "MIT");
        assert!(!nowhere.is_sibling(&package("b", Value::Null, "MIT")));
    }
}
