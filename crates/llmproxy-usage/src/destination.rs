//! A reporter of the configuration, made into what runs.

use std::{borrow::Cow, sync::Arc};

use http::Uri;
use llmproxy_core::HttpClient;

use crate::{
    BuiltinConfig, BuiltinReport, DatabaseReport, DatabaseReporterConfig, Report, ReporterConfig, Stores,
    config::{BUILTIN, DATABASE, FILE, STDOUT, WEBHOOK},
    fields::Fields,
    file::{FileReport, FileTarget},
    filter::Filter,
    stdout::StdoutReport,
    webhook::{Webhook, WebhookReport},
};

/// What a reporter of the configuration is, checked.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) filter: Filter,
    fields: Fields,
    to: To,
}

#[derive(Debug)]
enum To {
    Webhook(Box<Webhook>),
    File(FileTarget),
    Stdout,
    Database(DatabaseReporterConfig),
    Builtin(BuiltinConfig),
}

// === impl Destination ===

impl Destination {
    /// Takes what the operator wrote, or says what is wrong with which key.
    pub(crate) fn compile(config: &ReporterConfig) -> Result<Self, Vec<(String, String)>> {
        let mut wrong = Vec::new();
        let below = |block: &str, mistakes: Vec<(String, String)>| {
            mistakes.into_iter().map(|(key, what)| (format!("{block}.{key}"), what)).collect::<Vec<_>>()
        };
        let to = match &*config.kind {
            WEBHOOK => Webhook::compile(&config.webhook)
                .map(|webhook| To::Webhook(webhook.into()))
                .map_err(|mistakes| wrong.extend(below("webhook", mistakes)))
                .ok(),
            FILE => FileTarget::compile(&config.file)
                .map(To::File)
                .map_err(|mistakes| wrong.extend(below("file", mistakes)))
                .ok(),
            STDOUT => Some(To::Stdout),
            DATABASE => {
                wrong.extend(below(DATABASE, config.database.validate()));
                Some(To::Database(config.database.clone()))
            }
            BUILTIN => {
                wrong.extend(below(BUILTIN, config.builtin.validate()));
                Some(To::Builtin(config.builtin.clone()))
            }
            other => {
                let kinds = format!("{WEBHOOK}, {FILE}, {STDOUT}, {DATABASE} or {BUILTIN}");
                let what = format!("`{other}` is not a kind of reporter; use {kinds}");
                return Err(vec![("type".to_owned(), what)]);
            }
        };
        wrong.extend(below("filter", config.filter.validate().collect()));
        let fields = Fields::compile(&config.fields).unwrap_or_else(|unknown| {
            wrong.extend(unknown.into_iter().map(|(index, what)| (format!("fields[{index}]"), what)));
            Fields::default()
        });
        if !config.fields.is_empty() && matches!(&*config.kind, DATABASE | BUILTIN) {
            wrong.push(("fields".to_owned(), "a table has all columns; leave it out".to_owned()));
        }
        let has_body = config.kind == WEBHOOK && config.webhook.include_request_body;
        let wants_body = config.fields.iter().any(|field| field == "request_body");
        if !config.fields.is_empty() && has_body != wants_body {
            let what = "request_body goes with webhook.include_request_body: name both or neither";
            wrong.push(("fields".to_owned(), what.to_owned()));
        }
        match to {
            Some(to) if wrong.is_empty() => {
                Ok(Self { name: name(config).into(), filter: Filter::compile(&config.filter), fields, to })
            }
            _ => Err(wrong),
        }
    }

    /// Whether what it delivers counts as webhooks do.
    pub(crate) fn is_webhook(&self) -> bool {
        matches!(self.to, To::Webhook(_))
    }

    /// What delivers there; a webhook is sent through `client`. Or what is wrong with the database that it refers to.
    pub(crate) fn report(
        self,
        client: &HttpClient,
        stores: Stores<'_>,
    ) -> Result<Arc<dyn Report>, Vec<(String, String)>> {
        let Self { name, fields, .. } = self;
        Ok(match self.to {
            To::Webhook(webhook) => Arc::new(WebhookReport { name, webhook: *webhook, fields, client: client.clone() }),
            To::File(target) => Arc::new(FileReport::new(name, target, fields)),
            To::Stdout => Arc::new(StdoutReport::new(name, fields)),
            To::Database(config) => Arc::new(DatabaseReport::new(&*name, &config, stores.storage)?),
            To::Builtin(config) => BuiltinReport::new(&*name, &config, stores.admin_db),
        })
    }
}

/// The name that it has, or goes by; never the whole URL, which may hold a token.
pub(crate) fn name(config: &ReporterConfig) -> Cow<'_, str> {
    match (&*config.name, &*config.kind) {
        ("", WEBHOOK) => {
            let url = config.webhook.url.parse::<Uri>().ok();
            Cow::Owned(url.and_then(|url| url.host().map(str::to_owned)).unwrap_or_default())
        }
        ("", DATABASE) => Cow::Borrowed(&config.database.storage),
        ("", kind) => Cow::Borrowed(kind),
        (name, _) => Cow::Borrowed(name),
    }
}
