//! Where records are.

use std::{io::ErrorKind, path::Path};

use llmproxy_config::Config;
use llmproxy_usage::{LedgerError, LedgerReader, ReporterConfig};

use super::args::PlaceArgs;
use crate::{
    check::load_or_explain,
    cli::{ConfigArgs, DEFAULT_CONFIG},
};

/// What the configuration says of it, or the command line.
pub(super) struct Place {
    pub(super) config: Config,
    args: PlaceArgs,
    /// Whether there is a file that says so.
    pub(super) is_configured: bool,
}

// === impl Place ===

impl Place {
    /// Finds it; with `needs_config`, the configuration is read also where the command line names the ledger. `None`, with
    /// everything said, where the file can't be used.
    pub(super) fn find(args: &PlaceArgs, needs_config: bool) -> Option<Self> {
        let is_default = args.config == Path::new(DEFAULT_CONFIG);
        let can_do_without = is_default && !args.config.exists() && !needs_config;
        let is_configured = !(can_do_without || is_default && args.ledger.is_some() && !needs_config);
        let config = if is_configured {
            load_or_explain(&ConfigArgs { config: args.config.clone(), strict: false })?.config
        } else {
            Config::default()
        };
        Some(Self { config, args: args.clone(), is_configured })
    }

    pub(super) fn ledger(&self) -> &Path {
        self.args.ledger.as_deref().unwrap_or(&self.config.usage.ledger.path)
    }

    /// What the command line says of it.
    pub(super) fn args(&self) -> &PlaceArgs {
        &self.args
    }

    pub(super) fn admin_db(&self) -> &Path {
        &self.config.admin.db_path
    }

    /// Whether the builtin store is to be asked where nobody says.
    pub(super) fn has_builtin(&self) -> bool {
        let is_builtin = |reporter: &ReporterConfig| reporter.enabled && reporter.kind == "builtin";
        self.args.ledger.is_none() && self.config.usage.enabled && self.config.usage.reporters.iter().any(is_builtin)
    }

    pub(super) async fn open_ledger(&self) -> Result<LedgerReader, String> {
        LedgerReader::open(self.ledger()).await.map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &LedgerError) -> String {
        if lacks_rights(&error.to_string()) {
            return format!(
                "{error}; also whoever reads it must be allowed to write it and its folder, where SQLite keeps a log beside it: \
                 run this as the user that runs the proxy"
            );
        }
        let LedgerError::Open { path, source } = error else { return error.to_string() };
        if source.kind() != ErrorKind::NotFound {
            return error.to_string();
        }
        let looked = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let advice = match (&self.args.ledger, self.is_configured) {
            (Some(_), _) => "name the one that the proxy's configuration has in usage.ledger.path".to_owned(),
            (None, true) if !self.config.usage.enabled => {
                format!("usage.enabled is false in {}, so that none is kept", self.args.config.display())
            }
            (None, true) => format!(
                "it is made when the proxy starts with {}; a path that is relative, as usage.ledger.path may be, counts from \
                 the folder that the proxy was started in: run this there, or name the file with --ledger FILE",
                self.args.config.display()
            ),
            (None, false) => {
                "name the proxy's configuration with --config FILE, or the ledger with --ledger FILE".to_owned()
            }
        };
        format!("there is no usage ledger {}: looked for {}; {advice}", path.display(), looked.display())
    }
}

/// Whether SQLite means by that that another user should ask.
fn lacks_rights(told: &str) -> bool {
    // The file can't be opened; or it can, to be read, and the log beside it can't.
    told.contains("unable to open database file") || told.contains("attempt to write a readonly database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_user_s_ledger_is_told_from_a_broken_one() {
        // The first as it came from a ledger of root's that `nobody` asked for.
        assert!(lacks_rights("error returned from database: (code: 1544) attempt to write a readonly database"));
        assert!(lacks_rights("error returned from database: (code: 14) unable to open database file"));
        assert!(!lacks_rights("error returned from database: (code: 26) file is not a database"));
    }
}
