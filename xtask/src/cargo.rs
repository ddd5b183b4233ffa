//! Running cargo from a program that cargo runs, and other programs in the same manner.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask is a folder of the workspace").to_owned()
}

/// The same cargo that runs us, in the root of the workspace, reading no input.
pub(crate) fn cargo<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
    command
}

/// A program that builds, in the root of the workspace, reading no input.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        // What `cargo run` tells us about this package is not true of what we run, and build scripts that look at it
        // would build their crates anew, each time that somebody alternates between `cargo test` and `cargo xtask test`.
        if name.to_str().is_some_and(is_about_this_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `command` without input, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    eprintln!("    {}", shown(command));
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{}` ended with {status}", shown(command))),
        Err(error) => Err(format!("`{}` could not be started: {error}", shown(command))),
    }
}

/// Runs `command` and returns what it wrote to its standard output.
pub(crate) fn read(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("`{}` could not be started: {error}", shown(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{}` ended with {}: {}", shown(command), output.status, errors.trim()));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("`{}` wrote no UTF-8: {error}", shown(command)))
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // Cargo is known by its whole path; a path tells nothing of the others either.
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

fn is_about_this_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_MANIFEST_")
        || matches!(variable, "CARGO_CRATE_NAME" | "CARGO_BIN_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_of_this_package_is_not_passed_on() {
        // `cargo test` has set them for us, too.
        let command = cargo(["test"]);
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(removed.contains(&"CARGO_PKG_NAME".as_ref()), "{removed:?}");
        assert!(!removed.contains(&"CARGO_HOME".as_ref()) && !removed.contains(&"PATH".as_ref()), "{removed:?}");
    }

    #[test]
    fn a_command_that_fails_is_named_in_the_error() {
        let error = read(&mut cargo(["no-such-command"])).unwrap_err();
        assert!(error.contains("cargo no-such-command"), "{error}");
    }
}
