//! What the answer is for each status of a key: `auth.status_codes`.

use std::{net::IpAddr, sync::Arc};

use http::StatusCode;
use jiff::Timestamp;

use crate::{AuthError, KeyEntry, KeyStatus, Refusal, StatusCodesConfig, StatusRuleConfig};

/// The rules, one for each status.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    active: Rule,
    disabled: Rule,
    expired: Rule,
    quota_exceeded: Rule,
    not_found: Rule,
    missing: Rule,
}

#[derive(Clone, Debug)]
struct Rule {
    allow: bool,
    status: Option<StatusCode>,
    message: Option<Arc<str>>,
}

// === impl Rules ===

impl Rules {
    /// Reads the block; tells `mistake` of each one, by the path of its key.
    pub(crate) fn new(
        config: &StatusCodesConfig,
        header_names: &[String],
        mut mistake: impl FnMut(String, String),
    ) -> Self {
        let mut rule = |name: &str, config: &StatusRuleConfig, allowed: bool| {
            Rule::new(config, allowed).unwrap_or_else(|what| {
                mistake(format!("status_codes.{name}.http_code"), what);
                Rule { allow: false, status: None, message: None }
            })
        };
        Self {
            active: rule("active", &config.active, true),
            disabled: rule("disabled", &config.disabled, false),
            expired: rule("expired", &config.expired, false),
            quota_exceeded: rule("quota_exceeded", &config.quota_exceeded, false),
            not_found: rule("not_found", &config.not_found, false),
            missing: Rule { allow: false, status: None, message: missing_message(header_names) },
        }
    }

    /// Whether a key that no source knows is let in.
    pub(crate) fn allows_unknown(&self) -> bool {
        self.not_found.allow
    }

    /// Whether the key may be used now and from there.
    pub(crate) fn check(&self, entry: &KeyEntry, now: Timestamp, ip: Option<IpAddr>) -> Result<(), AuthError> {
        let refused =
            |refusal: Refusal, applies: bool| match applies && !self.rule(refusal).is_some_and(|rule| rule.allow) {
                true => Err(self.refuse(refusal)),
                false => Ok(()),
            };
        let is = |status| entry.status == status;
        let ended = entry.expires_at.is_some_and(|at| at <= now);
        let not_begun = entry.starts_at.is_some_and(|at| at > now);
        refused(Refusal::Disabled, is(KeyStatus::Disabled))?;
        refused(Refusal::Expired, is(KeyStatus::Expired) || ended)?;
        refused(Refusal::NotStarted, not_begun)?;
        refused(Refusal::QuotaExceeded, is(KeyStatus::QuotaExceeded))?;
        refused(Refusal::Barred, is(KeyStatus::Active) && !ended && !not_begun)?;
        if !entry.addresses.permit(ip) {
            return Err(self.refuse(Refusal::Address));
        }
        Ok(())
    }

    /// The error for `refusal`.
    pub(crate) fn refuse(&self, refusal: Refusal) -> AuthError {
        let rule = self.rule(refusal);
        let status = rule.and_then(|rule| rule.status).unwrap_or(refusal.status());
        let message = rule.and_then(|rule| rule.message.clone()).unwrap_or_else(|| refusal.message().into());
        AuthError::new(refusal, status, message)
    }

    fn rule(&self, refusal: Refusal) -> Option<&Rule> {
        match refusal {
            Refusal::Missing => Some(&self.missing),
            Refusal::Unknown => Some(&self.not_found),
            Refusal::Disabled => Some(&self.disabled),
            Refusal::Expired | Refusal::NotStarted => Some(&self.expired),
            Refusal::QuotaExceeded => Some(&self.quota_exceeded),
            Refusal::Barred => Some(&self.active),
            // Not a status of a key, so there is nothing to configure.
            Refusal::SourceFailed | Refusal::Address => None,
        }
    }
}

/// Where to send a key; `None` where the usual sentence is true.
fn missing_message(header_names: &[String]) -> Option<Arc<str>> {
    if header_names.iter().any(|name| name.eq_ignore_ascii_case("authorization")) {
        return None;
    }
    Some(format!("no API key was sent; send one in the header {}", header_names.join(" or ")).into())
}

// === impl Rule ===

impl Rule {
    fn new(config: &StatusRuleConfig, allowed: bool) -> Result<Self, String> {
        let allow = config.allow.unwrap_or(allowed);
        let status = match config.http_code {
            0 => None,
            code if allow || (400..=599).contains(&code) => StatusCode::from_u16(code).ok(),
            code => {
                return Err(format!("{code} is no status of a refusal; allowed are 400 to 599, and 0 for the default"));
            }
        };
        let message = config.message.trim();
        Ok(Self { allow, status, message: (!message.is_empty()).then(|| message.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyHash;

    fn rules(json: &str) -> Rules {
        let config: StatusCodesConfig = serde_json::from_str(json).unwrap();
        Rules::new(&config, &["Authorization".into()], |path, what| panic!("{path}: {what}"))
    }

    fn entry(change: impl FnOnce(&mut KeyEntry)) -> KeyEntry {
        let mut entry = KeyEntry::new(KeyHash::of(b"key"));
        change(&mut entry);
        entry
    }

    #[track_caller]
    fn check(rules: &Rules, entry: &KeyEntry, expected: Result<(), (u16, &str, Refusal)>) {
        let now = "2026-06-01T12:00:00Z".parse().unwrap();
        let found = rules.check(entry, now, "192.0.2.1".parse().ok());
        assert_eq!(found.map_err(|error| (error.status().as_u16(), error.code(), error.refusal())), expected);
    }

    #[test]
    fn each_status_has_its_answer() {
        let rules = rules("{}");
        let with = |status| entry(|entry| entry.status = status);
        check(&rules, &with(KeyStatus::Active), Ok(()));
        check(&rules, &with(KeyStatus::Disabled), Err((403, "DISABLED", Refusal::Disabled)));
        check(&rules, &with(KeyStatus::Expired), Err((403, "EXPIRED", Refusal::Expired)));
        check(&rules, &with(KeyStatus::QuotaExceeded), Err((429, "QUOTA_EXCEEDED", Refusal::QuotaExceeded)));
    }

    #[test]
    fn a_key_is_valid_from_its_start_to_just_before_its_end() {
        let rules = rules("{}");
        let at = |text: &str| Some(text.parse().unwrap());
        check(&rules, &entry(|e| e.expires_at = at("2026-06-01T12:00:00.001Z")), Ok(()));
        check(&rules, &entry(|e| e.expires_at = at("2026-06-01T12:00:00Z")), Err((403, "EXPIRED", Refusal::Expired)));
        check(&rules, &entry(|e| e.starts_at = at("2026-06-01T12:00:00Z")), Ok(()));
        check(&rules, &entry(|e| e.starts_at = at("2026-06-01T12:00:01Z")), Err((403, "EXPIRED", Refusal::NotStarted)));
    }

    #[test]
    fn disabled_is_said_before_expired_and_both_before_the_address() {
        let rules = rules("{}");
        let mut key = entry(|e| {
            e.status = KeyStatus::Disabled;
            e.expires_at = Some(Timestamp::UNIX_EPOCH);
            e.addresses.denied = vec!["0.0.0.0/0".parse().unwrap()];
        });
        check(&rules, &key, Err((403, "DISABLED", Refusal::Disabled)));
        key.status = KeyStatus::QuotaExceeded;
        check(&rules, &key, Err((403, "EXPIRED", Refusal::Expired)));
        key.expires_at = None;
        check(&rules, &key, Err((429, "QUOTA_EXCEEDED", Refusal::QuotaExceeded)));
        key.status = KeyStatus::Active;
        check(&rules, &key, Err((403, "INVALID", Refusal::Address)));
    }

    #[test]
    fn an_allowed_status_passes_but_what_else_is_wrong_is_still_wrong() {
        let rules = rules(r#"{"disabled": {"allow": true}}"#);
        let mut key = entry(|e| e.status = KeyStatus::Disabled);
        check(&rules, &key, Ok(()));
        key.expires_at = Some(Timestamp::UNIX_EPOCH);
        check(&rules, &key, Err((403, "EXPIRED", Refusal::Expired)));
    }

    #[test]
    fn active_keys_can_be_barred_without_letting_others_in() {
        let rules = rules(r#"{"active": {"allow": false, "http_code": 503, "message": "closed on sundays"}}"#);
        check(&rules, &entry(|_| ()), Err((503, "INVALID", Refusal::Barred)));
        assert_eq!(rules.refuse(Refusal::Barred).to_string(), "closed on sundays");
        check(&rules, &entry(|e| e.status = KeyStatus::Disabled), Err((403, "DISABLED", Refusal::Disabled)));
    }

    #[test]
    fn status_and_message_can_be_overridden_and_zero_is_the_default() {
        let rules = rules(r#"{"quota_exceeded": {"http_code": 402, "message": "pay"}, "not_found": {"http_code": 0}}"#);
        let quota = rules.refuse(Refusal::QuotaExceeded);
        assert_eq!((quota.status().as_u16(), quota.code(), quota.to_string().as_str()), (402, "QUOTA_EXCEEDED", "pay"));
        assert_eq!(rules.refuse(Refusal::Unknown).status(), StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn the_answer_names_the_header_that_is_looked_at() {
        let rules = Rules::new(&StatusCodesConfig::default(), &["X-Team-Key".into()], |_, _| ());
        assert!(rules.refuse(Refusal::Missing).to_string().contains("X-Team-Key"));
    }
}
