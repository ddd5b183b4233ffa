//! Loads a configuration and says what is wrong with it.

use std::process::ExitCode;

use llmproxy_config::{LoadOptions, Loaded, load};

use crate::{EX_USAGE, cli::ConfigArgs, say};

/// `llmproxy check`.
pub(crate) fn run(args: &ConfigArgs) -> Result<ExitCode, String> {
    let Some(loaded) = load_or_explain(args) else { return Ok(ExitCode::from(EX_USAGE)) };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
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
            eprintln!("llmproxy: {} can't be used:\n{error}", args.config.display());
            None
        }
    }
}
