//! Keys of the builtin store.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use jiff::Timestamp;
use llmproxy_auth::{KeyEntry, KeyStatus, KeyStore, KeyStoreError, NewKey};
use llmproxy_config::{Config, LoadOptions, load};
use llmproxy_core::OnAbort;
use serde_json::{Value, json};

use crate::{
    check::explain,
    cli::{DEFAULT_CONFIG, KeysArgs, KeysCommand},
    say,
};

/// `llmproxy keys`.
pub(crate) async fn run(args: KeysArgs) -> Result<ExitCode, String> {
    let path = store_path(&args)?;
    if args.db.is_some() && !matches!(args.command, KeysCommand::Create { .. }) && !path.exists() {
        return Err(format!(
            "there is no key store {}; without --db, it is the one that the configuration names (admin.db_path)",
            path.display()
        ));
    }
    let store = KeyStore::open(&path).await.map_err(|error| {
        let advice = error.advice().map_or_else(String::new, |advice| format!("; {advice}"));
        format!("the key store {} can't be opened: {error}{advice}", path.display())
    })?;
    let result = execute(&store, &path, args.command).await;
    store.close().await;
    result
}

async fn execute(store: &KeyStore, path: &Path, command: KeysCommand) -> Result<ExitCode, String> {
    match command {
        KeysCommand::Create { name, user_id, models, on_abort, tag, expires_at } => {
            let expires_at = expires_at
                .map(|text| {
                    text.parse::<Timestamp>()
                        .map_err(|_| format!("--expires-at `{text}` is not a time; write it like 2027-01-01T00:00:00Z"))
                })
                .transpose()?;
            if name.trim().is_empty() {
                return Err("--name is empty; a key is found and revoked by its name, so give it one".into());
            }
            let on_abort = on_abort.as_deref().and_then(OnAbort::from_name);
            let key = NewKey {
                name: Some(name),
                user_id,
                allowed_models: models,
                on_abort,
                tag,
                expires_at,
                ..NewKey::default()
            };
            let created = store.create(key).await.map_err(|error| error.to_string())?;
            // The key alone on standard output, so that a script can take it.
            writeln!(std::io::stdout(), "{}", created.key).map_err(|error| {
                format!("the key was made, but can't be shown: {error}; revoke {} and make another", created.entry)
            })?;
            eprintln!(
                "Keep it: only its hash is stored, in {}, it can't be shown again. Send it as `Authorization: Bearer KEY`.",
                path.display()
            );
        }
        KeysCommand::List { json } => list(store, path, json)?,
        KeysCommand::Revoke { key } => {
            let revoked = store.revoke(&key).await.map_err(|error| match error {
                KeyStoreError::NotFound => format!(
                    "no key in {0} has that name, fingerprint or value, so nothing was revoked; see what there is with: \
                     llmproxy keys list --db {0}",
                    path.display()
                ),
                other => other.to_string(),
            })?;
            say(format_args!("revoked {revoked}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &KeyStore, path: &Path, as_json: bool) -> Result<(), String> {
    let keys = store.list();
    if keys.is_empty() {
        eprintln!("{0} has no keys; make one with: llmproxy keys create --name NAME --db {0}", path.display());
    }
    if as_json {
        for key in keys {
            say(describe(&key))?;
        }
        return Ok(());
    }
    say(format_args!("{:<24} {:<18} {:<16} {:<12} {:<16} EXPIRES", "NAME", "FINGERPRINT", "KEY", "STATUS", "USER"))?;
    for key in keys {
        say(format_args!(
            "{:<24} {:<18} {:<16} {:<12} {:<16} {}",
            key.name.as_deref().unwrap_or("-"),
            key.fingerprint(),
            key.masked.as_deref().unwrap_or("-"),
            status(&key),
            key.user_id.as_deref().unwrap_or("-"),
            key.expires_at.map_or_else(|| "never".to_owned(), |time| time.to_string()),
        ))?;
    }
    Ok(())
}

/// One JSON object a line, without anything secret.
fn describe(key: &KeyEntry) -> Value {
    json!({
        "name": key.name.as_deref(),
        "fingerprint": &**key.fingerprint(),
        "key": key.masked.as_deref(),
        "status": status(key),
        "user_id": key.user_id.as_deref(),
        "allowed_models": key.allowed_models.as_deref(),
        "on_abort": key.on_abort.map(OnAbort::as_str),
        "tag": key.tag.as_deref(),
        "starts_at": key.starts_at.map(|time| time.to_string()),
        "expires_at": key.expires_at.map(|time| time.to_string()),
        "created_at": key.created_at.map(|time| time.to_string()),
    })
}

fn status(key: &KeyEntry) -> &'static str {
    match key.status {
        KeyStatus::Active => "active",
        KeyStatus::Disabled => "disabled",
        KeyStatus::QuotaExceeded => "quota_exceeded",
        KeyStatus::Expired => "expired",
    }
}

/// `--db`, else what the configuration says; the default where none was named and there is none. One that was named and
/// is missing is a slip: its keys would be made in a store that no proxy reads.
fn store_path(args: &KeysArgs) -> Result<PathBuf, String> {
    if let Some(db) = &args.db {
        return Ok(db.clone());
    }
    if args.config == Path::new(DEFAULT_CONFIG) && !args.config.exists() {
        return Ok(Config::default().admin.db_path);
    }
    match load(&args.config, &LoadOptions::default()) {
        Ok(loaded) => Ok(loaded.config.admin.db_path),
        Err(error) => Err(format!(
            "{}\nThe file says where the keys are; --db FILE says it without one.",
            explain(&args.config, &error)
        )),
    }
}
