//! Loads a configuration and says what is wrong with it.

use std::{io::ErrorKind, path::Path, process::ExitCode};

use llmproxy_config::{LoadError, LoadOptions, Loaded, load};

use crate::{
    EX_USAGE,
    cli::{ConfigArgs, DEFAULT_CONFIG},
    say,
};

/// `llmproxy check`.
pub(crate) fn run(args: &ConfigArgs) -> Result<ExitCode, String> {
    let Some(loaded) = load_or_explain(args) else { return Ok(ExitCode::from(EX_USAGE)) };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    llmproxy_stack::check_tls(&loaded.config.server).map_err(|error| error.to_string())?;
    llmproxy_stack::check_tokenizers(&loaded.config.metering).map_err(|errors| errors.join("\n"))?;
    say(format_args!(
        "{}: ok, {} backend(s), {} warning(s)",
        args.config.display(),
        loaded.config.backends.len(),
        loaded.warnings.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration, or every mistake in it on standard error.
pub(crate) fn load_or_explain(args: &ConfigArgs) -> Option<Loaded> {
    match load(&args.config, &LoadOptions { strict: args.strict, ..LoadOptions::default() }) {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            eprintln!("llmproxy: {}", explain(&args.config, &error));
            None
        }
    }
}

/// What is wrong with the file at `path`, and what to do.
pub(crate) fn explain(path: &Path, error: &LoadError) -> String {
    let shown = path.display();
    match error {
        LoadError::Read { source, .. } => match source.kind() {
            ErrorKind::NotFound => no_file(path),
            ErrorKind::IsADirectory => {
                format!(
                    "{shown} is a folder; name the file in it, such as --config {}",
                    path.join(DEFAULT_CONFIG).display()
                )
            }
            ErrorKind::PermissionDenied => format!(
                "{shown} can't be read: {source}; let the user that runs llmproxy read it, and enter its folders"
            ),
            ErrorKind::InvalidData => format!("{shown} is no text in UTF-8; save it as UTF-8, or name another file"),
            _ => format!("{shown} can't be read: {source}; name another file with --config FILE"),
        },
        LoadError::Parse { .. } => format!(
            "{shown} can't be used:\n{error}\nThe mistake is at that place or just before it: see whether lines that belong \
             together begin in the same column, and whether each quote and bracket is closed."
        ),
        LoadError::Mistakes(_) => format!("{shown} can't be used:\n{error}"),
    }
}

fn no_file(path: &Path) -> String {
    // From a service manager or a container the working directory is often not what one thinks.
    let looked = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!(
        "there is no configuration file {}: looked for {}\n\
         If it is elsewhere, name it: llmproxy --config FILE\n\
         To begin with one, copy config/config.yaml.example, or write this into {DEFAULT_CONFIG}, with your server's address:\n\
         \n  backends:\n    - url: http://localhost:11434\n\n\
         To see the proxy work without any file: llmproxy demo",
        path.display(),
        looked.display()
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_file_that_can_t_be_read_is_told_apart_from_one_that_is_not_there() {
        let check = |kind: ErrorKind, parts: &[&str]| {
            let told = explain(Path::new("x.yaml"), &LoadError::Read { path: "x.yaml".into(), source: kind.into() });
            for part in parts {
                assert!(told.contains(part), "{part} is not in: {told}");
            }
        };
        check(ErrorKind::NotFound, &["/x.yaml", "--config FILE", "config.yaml.example", "llmproxy demo"]);
        check(ErrorKind::PermissionDenied, &["x.yaml", "the user that runs llmproxy"]);
        check(ErrorKind::IsADirectory, &["is a folder", "x.yaml/config.yaml"]);
        check(ErrorKind::InvalidData, &["UTF-8"]);
        let other = LoadError::Read { path: "x.yaml".into(), source: io::Error::other("the disk is gone") };
        assert!(explain(Path::new("x.yaml"), &other).contains("the disk is gone"));
    }
}
