//! Blocks that are read rather than run.

use std::process::{Command, Stdio};

use llmproxy_config::{LoadError, LoadOptions, load_str};
use serde_json::Value;

use crate::{
    blocks::{Block, Expect},
    place::Folder,
};

/// What is wrong with the block.
pub(crate) fn check(block: &Block) -> Result<(), String> {
    match block.expect {
        Expect::Loads | Expect::Warns | Expect::Refused | Expect::OtherYaml => yaml(&block.text, block.expect),
        Expect::Json => {
            serde_json::from_str::<Value>(&block.text).map(|_| ()).map_err(|error| format!("no JSON: {error}"))
        }
        Expect::Python => compile("py", "python3", &["-m", "py_compile"], &block.text),
        Expect::JavaScript => compile("mjs", "node", &["--check"], &block.text),
        Expect::Ini => ini(&block.text),
        Expect::Run | Expect::NotRun | Expect::Elsewhere | Expect::ForPeople => Ok(()),
    }
}

fn yaml(text: &str, expect: Expect) -> Result<(), String> {
    // A part of a file is loaded beside what each file needs.
    let whole = text.lines().any(|line| line.starts_with("backends:"));
    let text = if whole { text.to_owned() } else { format!("{text}\nbackends: [{{url: 'http://localhost:11434'}}]\n") };
    let variables = variables(&text).map(|name| (name.to_owned(), a_value(name).to_owned())).collect();
    let options = LoadOptions { strict: expect != Expect::OtherYaml, env: false, variables: Some(variables) };
    match (expect, load_str(&text, &options)) {
        (Expect::OtherYaml, Err(LoadError::Parse { message })) => Err(format!("no YAML: {message}")),
        (Expect::OtherYaml, _) => Ok(()),
        (Expect::Refused, Err(LoadError::Mistakes(_))) => Ok(()),
        (Expect::Refused, Err(error)) => Err(format!("is refused for another reason than is meant: {error}")),
        (Expect::Refused, Ok(_)) => Err("loads, but is marked `refused`; take the mark away".into()),
        (_, Err(error)) => Err(format!("does not load:\n{error}")),
        (Expect::Warns, Ok(loaded)) if loaded.warnings.is_empty() => {
            Err("loads without a warning; take `warns` away".into())
        }
        (Expect::Loads, Ok(loaded)) if !loaded.warnings.is_empty() => {
            let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
            Err(format!("loads with warnings; mend it, or mark it `warns`:\n{}", warnings.join("\n")))
        }
        (_, Ok(_)) => Ok(()),
    }
}

/// The names in `${NAME}` and `${NAME:-default}`.
fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next())
}

/// What may stand in a variable of that name.
fn a_value(name: &str) -> &'static str {
    if name.ends_with("WEBHOOK_SECRET") { "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX" } else { "a-value" }
}

/// Asks the language's own compiler, where there is one.
fn compile(extension: &str, program: &str, args: &[&str], text: &str) -> Result<(), String> {
    let folder = Folder::new();
    let file = format!("block.{extension}");
    std::fs::write(folder.join(&file), text).expect("the folder is ours");
    let output = Command::new(program)
        .args(args)
        .arg(&file)
        .current_dir(&*folder)
        .env("PYTHONPYCACHEPREFIX", &*folder)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program} does not take it: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => {
            eprintln!("a block is not checked, since {program} does not start here: {error}");
            Ok(())
        }
    }
}

fn ini(text: &str) -> Result<(), String> {
    let fine = |line: &str| {
        line.is_empty() || line.starts_with('#') || (line.starts_with('[') && line.ends_with(']')) || line.contains('=')
    };
    match text.lines().find(|line| !fine(line)) {
        Some(line) => Err(format!("`{line}` is no section and no key with a value")),
        None => Ok(()),
    }
}
