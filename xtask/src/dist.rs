//! `cargo xtask dist`: what is handed to people who build nothing.
//!
//! An archive with the binary, what it takes to begin, the licence texts of all that is linked into it and a list of that
//! (CycloneDX), with its SHA-256 beside it. The archive is then unpacked into an empty folder, and what is in it must work
//! there without anything around it. What it costs a request is counted last: it takes this build, which takes minutes.

mod archive;
mod baseline;
mod licences;
mod metadata;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use self::metadata::Metadata;
use crate::{
    bench,
    cargo::{cargo, read, root, run as run_command},
    step::{Step, run_all},
};

/// The oldest glibc that the binary is built for: that of the oldest system which Rust's own standard library supports.
const GLIBC: &str = "2.17";
/// A larger binary is a mistake.
const MAX_BYTES: u64 = 25_000_000;
/// zig's compiler comes with the symbols of every glibc. Both are on PyPI as they are run.
const ZIG: &[&str] = &["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];
const CYCLONEDX: &str = "0.5.9";
/// As RUSTFLAGS, but for paths with blanks in them.
const FLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";

/// Where things are.
struct Dist {
    /// All that is made here.
    folder: PathBuf,
    /// Such as `x86_64-unknown-linux-gnu`.
    target: String,
    /// The archive's name without its ending, and the name of the folder in it.
    name: String,
    metadata: Metadata,
}

/// Builds and checks the archive. Returns whether all went well.
pub(crate) fn run() -> bool {
    let dist = match Dist::new() {
        Ok(dist) => std::rc::Rc::new(dist),
        Err(error) => {
            eprintln!("==> dist FAILED: {error}");
            return false;
        }
    };
    let broken = std::rc::Rc::new(std::cell::Cell::new(false));
    // Each builds on those before it; nothing is packed that was not built now.
    let step = |name, run: fn(&Dist) -> Result<(), String>| {
        let (dist, broken) = (dist.clone(), broken.clone());
        Step::new(name, move || {
            if broken.get() {
                return Err("not done, as a step before it failed".into());
            }
            let result = run(&dist);
            broken.set(result.is_err());
            result
        })
    };
    run_all(
        "dist",
        vec![
            step("build", Dist::build),
            step("size and baseline", Dist::measure),
            step("contents", Dist::fill),
            step("SBOM", Dist::list_parts),
            step("archive", Dist::pack),
            step("try it", Dist::try_it),
            step("instructions", |dist| bench::compare_instructions(&dist.binary())),
        ],
    )
}

// === impl Dist ===

impl Dist {
    fn new() -> Result<Self, String> {
        let target = host()?;
        let metadata = Metadata::read(&target)?;
        let name = format!("llmproxy-{}-{target}", metadata.version("llmproxy")?);
        // Not target/dist: that is cargo's, for the profile of this name.
        let folder = root().join("target/archive");
        make(&folder)?;
        let dist = Self { folder, target, name, metadata };
        // What a run before this one made is not what this one says.
        for file in [dist.archive(), dist.sum()] {
            if file.exists() {
                fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            }
        }
        Ok(dist)
    }

    fn build(&self) -> Result<(), String> {
        let words = ["--locked", "--profile", "dist", "--package", "llmproxy", "--target"];
        let flags = remapped();
        if !self.is_glibc() {
            return run_command(cargo(["build"]).args(words).arg(&self.target).env(FLAGS, flags));
        }
        let python = self.folder.join("python");
        if !python.join("bin/cargo-zigbuild").exists() {
            run_command(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
            run_command(Command::new(python.join("bin/pip")).args(["install", "--quiet"]).args(ZIG))?;
        }
        let path = format!("{}:{}", python.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let target = format!("{}.{GLIBC}", self.target);
        run_command(cargo(["zigbuild"]).args(words).arg(target).env("PATH", path).env(FLAGS, flags))
    }

    fn measure(&self) -> Result<(), String> {
        let binary = fs::read(self.binary()).map_err(|error| format!("{}: {error}", self.binary().display()))?;
        let bytes = binary.len() as u64;
        eprintln!("    {}: {bytes} bytes ({:.1} MB)", self.binary().display(), bytes as f64 / 1e6);
        if bytes > MAX_BYTES {
            return Err(format!("the binary has {bytes} bytes, more than {MAX_BYTES}"));
        }
        for (place, _) in places() {
            let place = place.to_string_lossy();
            if binary.windows(place.len()).any(|window| window == place.as_bytes()) {
                return Err(format!("the binary names {place}, where it was built"));
            }
        }
        if self.is_glibc() {
            let needed = baseline::glibc(&binary).ok_or("the binary names no version of glibc")?;
            eprintln!("    needs glibc {}.{} or newer", needed.0, needed.1);
            if baseline::parse(GLIBC) < Some(needed) {
                return Err(format!("that is newer than {GLIBC}"));
            }
        }
        Ok(())
    }

    fn fill(&self) -> Result<(), String> {
        let (root, content) = (root(), self.content());
        remove(&content)?;
        make(&content)?;
        copy(&self.binary(), &content.join("llmproxy"))?;
        for name in ["README.md", "CHANGELOG.md", "LICENSE"] {
            copy(&root.join(name), &content.join(name))?;
        }
        for name in ["config", "docs"] {
            copy_all(&root.join(name), &content.join(name))?;
        }
        write(&content.join("THIRD-PARTY-LICENSES.txt"), &licences::collect(&self.metadata)?)
    }

    fn list_parts(&self) -> Result<(), String> {
        let tools = self.folder.join("tools");
        let bin = tools.join("bin");
        if !bin.join("cargo-cyclonedx").exists() {
            let words = ["install", "cargo-cyclonedx", "--locked", "--version", CYCLONEDX, "--root"];
            run_command(cargo(words).arg(&tools))?;
        }
        // It writes a file beside the manifest of each of our packages, whatever it is told.
        let written = |package: &metadata::Package| package.folder.join("llmproxy-sbom.json");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let words = ["cyclonedx", "--format", "json", "--spec-version", "1.5", "--override-filename", "llmproxy-sbom"];
        run_command(cargo(words).args(["--target", &self.target]).env("PATH", path))?;
        let mut sbom = None;
        for package in self.metadata.ours() {
            let text = fs::read_to_string(written(package)).ok();
            let _ = fs::remove_file(written(package));
            sbom = sbom.or(text.filter(|_| package.name == "llmproxy"));
        }
        // Where it was built is nobody's business.
        let sbom = sbom.ok_or("there is no list for llmproxy")?.replace(&*root().to_string_lossy(), "");
        let mut sbom: Value = serde_json::from_str(&sbom).map_err(|error| format!("the SBOM: {error}"))?;
        self.check_parts(&sbom)?;
        // A number made up and the time of day: without them the same sources make the same archive.
        for (holder, name) in [("", "serialNumber"), ("/metadata", "timestamp")] {
            sbom.pointer_mut(holder).and_then(Value::as_object_mut).and_then(|object| object.remove(name));
        }
        write(&self.content().join("llmproxy.cdx.json"), &format!("{sbom:#}\n"))
    }

    /// The list must have all that is linked.
    fn check_parts(&self, sbom: &Value) -> Result<(), String> {
        let listed = sbom["components"].as_array().ok_or("the SBOM lists nothing")?;
        for package in self.metadata.linked() {
            let is_it = |part: &Value| part["name"] == *package.name && part["version"] == *package.version;
            if !package.is_ours() && !listed.iter().any(is_it) {
                return Err(format!("{} {} is not in the SBOM", package.name, package.version));
            }
        }
        eprintln!("    {} components", listed.len());
        Ok(())
    }

    fn pack(&self) -> Result<(), String> {
        let archive = self.archive();
        archive::pack(&self.folder, &self.name, &archive)?;
        let sum = archive::sha256(&archive)?;
        write(&self.sum(), &format!("{sum}  {}.tar.gz\n", self.name))?;
        eprintln!("    {}\n    sha256 {sum}", archive.display());
        Ok(())
    }

    fn try_it(&self) -> Result<(), String> {
        let folder = self.folder.join("try");
        remove(&folder)?;
        make(&folder)?;
        run_command(Command::new("tar").arg("xzf").arg(self.archive()).arg("-C").arg(&folder))?;
        let home = folder.join(&self.name);
        let mut commands = vec![vec!["--version".to_owned()], vec!["demo".into(), "--once".into()]];
        for file in files(&home.join("config"))? {
            let file = file.strip_prefix(&home).map_err(|error| error.to_string())?.display().to_string();
            commands.push(vec!["check".into(), "--strict".into(), "--config".into(), file]);
        }
        for words in commands {
            run_command(Command::new(home.join("llmproxy")).args(words).env_clear().current_dir(&home))?;
        }
        remove(&folder)
    }

    fn is_glibc(&self) -> bool {
        self.target.ends_with("-linux-gnu")
    }

    fn binary(&self) -> PathBuf {
        self.metadata.target_folder.join(&self.target).join("dist/llmproxy")
    }

    /// What the archive is made of.
    fn content(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn sum(&self) -> PathBuf {
        self.folder.join(format!("{}.tar.gz.sha256", self.name))
    }

    fn archive(&self) -> PathBuf {
        self.folder.join(format!("{}.tar.gz", self.name))
    }
}

/// The target that this machine's compiler builds for by itself.
fn host() -> Result<String, String> {
    let text = read(cargo(["version", "--verbose"]).env("LC_ALL", "C"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "cargo does not say for which target it builds".into())
}

/// Where things are on this machine, and what is written in the place of that: panics name files.
fn places() -> Vec<(PathBuf, &'static str)> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    [(Some(root()), "/llmproxy"), (cargo, "/cargo")].into_iter().filter_map(|(at, name)| Some((at?, name))).collect()
}

fn remapped() -> String {
    let flags = places().into_iter().map(|(at, name)| format!("--remap-path-prefix={}={name}", at.display()));
    flags.collect::<Vec<_>>().join("\u{1f}")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    Ok(files)
}

fn copy_all(from: &Path, to: &Path) -> Result<(), String> {
    make(to)?;
    for file in files(from)? {
        let name = file.file_name().ok_or("a file without a name")?;
        if file.is_dir() { copy_all(&file, &to.join(name))? } else { copy(&file, &to.join(name))? }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn remove(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", folder.display())),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
