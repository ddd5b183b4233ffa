//! What is known of a key; the key itself is not.

use std::{collections::BTreeSet, fmt, sync::Arc};

use jiff::Timestamp;
use llmproxy_core::{Caller, OnAbort};
use sha2::{Digest, Sha256};

use crate::AddressRules;

/// The SHA-256 (FIPS 180-4) of a key: all that is kept of it, and what it is looked up by. Keys are random and long, so a
/// plain hash does; it is not meant for passwords.
///
/// ```
/// let hash = llmproxy_auth::KeyHash::of(b"sk-secret");
/// assert_eq!(llmproxy_auth::KeyHash::from_hex(&hash.to_string()), Some(hash));
/// assert_eq!(hash.fingerprint(), hash.to_string()[..16]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

/// Whether a key may be used.
///
/// ```
/// use llmproxy_auth::KeyStatus;
///
/// assert_eq!(KeyStatus::from_name("Disabled"), Some(KeyStatus::Disabled));
/// assert_eq!(KeyStatus::from_number(3), Some(KeyStatus::Expired));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyStatus {
    /// It may.
    #[default]
    Active,
    /// It was taken out of use.
    Disabled,
    /// What it may use is used up.
    QuotaExceeded,
    /// Its time is over.
    Expired,
}

/// One key of a source.
///
/// ```
/// use llmproxy_auth::{KeyEntry, KeyHash};
///
/// let mut entry = KeyEntry::new(KeyHash::of(b"sk-secret"));
/// entry.name = Some("alice".into());
/// assert!(entry.to_string().starts_with("alice ("));
/// ```
#[derive(Clone, Debug)]
pub struct KeyEntry {
    hash: KeyHash,
    fingerprint: Arc<str>,
    /// The key as a log may show it; `None` where it was never seen in clear.
    pub masked: Option<Arc<str>>,
    /// What logs and records call it.
    pub name: Option<Arc<str>>,
    /// The user that it belongs to.
    pub user_id: Option<Arc<str>>,
    /// Whether it may be used.
    pub status: KeyStatus,
    /// Where it may be used from.
    pub addresses: AddressRules,
    /// The models that it may use; `None` means all.
    pub allowed_models: Option<Arc<BTreeSet<String>>>,
    /// What is billed when its holder leaves an answer, where the key says so itself.
    pub on_abort: Option<OnAbort>,
    /// What its requests may be routed by, in the operator's words.
    pub tag: Option<Arc<str>>,
    /// When it begins to be valid.
    pub starts_at: Option<Timestamp>,
    /// When it ends to be valid.
    pub expires_at: Option<Timestamp>,
    /// When it was made, where that is known.
    pub created_at: Option<Timestamp>,
}

/// A key as a log may show it: its first and last four characters, `abcd***wxyz`; of a key of eight or fewer, nothing.
///
/// ```
/// assert_eq!(llmproxy_auth::mask("sk-0123456789"), "sk-0***6789");
/// assert_eq!(llmproxy_auth::mask("12345678"), "***");
/// ```
pub fn mask(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    if chars.len() <= 8 {
        return "***".into();
    }
    let (head, tail) = (&chars[..4], &chars[chars.len() - 4..]);
    head.iter().chain(&['*'; 3]).chain(tail).collect()
}

// === impl KeyHash ===

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Reads 64 hex digits, in either case; `None` where it is something else.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(hash))
    }

    /// The hash as a database has it: 32 bytes; `None` where there are more or fewer.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What identifies the key in logs and records without giving it away: the first 16 hex digits.
    pub fn fingerprint(&self) -> String {
        let mut digits = self.to_string();
        digits.truncate(16);
        digits
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({})", self.fingerprint())
    }
}

// === impl KeyStatus ===

impl KeyStatus {
    /// The name that files use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Expired => "expired",
        }
    }

    /// Reads a name, in any case; nothing at all is active. `None` where it names no status.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "active" | "enabled" | "0" => Some(Self::Active),
            "disabled" | "1" => Some(Self::Disabled),
            "quota_exceeded" | "2" => Some(Self::QuotaExceeded),
            "expired" | "3" => Some(Self::Expired),
            _ => None,
        }
    }

    /// Reads a number, 0 to 3 in the order above; `None` for any other.
    pub fn from_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Active),
            1 => Some(Self::Disabled),
            2 => Some(Self::QuotaExceeded),
            3 => Some(Self::Expired),
            _ => None,
        }
    }
}

// === impl KeyEntry ===

impl KeyEntry {
    /// An active key of which nothing else is known.
    pub fn new(hash: KeyHash) -> Self {
        Self {
            hash,
            fingerprint: hash.fingerprint().into(),
            masked: None,
            name: None,
            user_id: None,
            status: KeyStatus::Active,
            addresses: AddressRules::default(),
            allowed_models: None,
            on_abort: None,
            tag: None,
            starts_at: None,
            expires_at: None,
            created_at: None,
        }
    }

    /// The key's hash.
    pub fn hash(&self) -> &KeyHash {
        &self.hash
    }

    /// What identifies the key without giving it away.
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    /// The key's owner as the other layers know them. `presented` is the key in clear, to be masked where the source
    /// has only its hash.
    pub fn caller(&self, presented: &[u8]) -> Caller {
        let masked = self.masked.clone().unwrap_or_else(|| mask(&String::from_utf8_lossy(presented)).into());
        let mut caller = self.name.clone().map_or_else(Caller::anonymous, Caller::named);
        if let Some(user_id) = &self.user_id {
            caller = caller.with_user_id(user_id.clone());
        }
        caller
            .with_fingerprint(self.fingerprint.clone())
            .with_masked_key(masked)
            .with_shared_models(self.allowed_models.clone())
            .with_on_abort(self.on_abort)
            .with_tag(self.tag.clone())
    }
}

impl fmt::Display for KeyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.fingerprint),
            None => f.write_str(&self.fingerprint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_sha256sum_tool() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::of(b"abc").to_string(), expected);
        assert_eq!(KeyHash::from_hex(&expected.to_uppercase()), Some(KeyHash::of(b"abc")));
        assert_eq!(KeyHash::of(b"abc").fingerprint(), "ba7816bf8f01cfea");
    }

    #[test]
    fn what_is_no_hash_is_not_read() {
        for text in ["", "ba78", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65), &"é".repeat(32)] {
            assert_eq!(KeyHash::from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn short_keys_are_masked_whole() {
        let check = |key, expected| assert_eq!(mask(key), expected);
        check("", "***");
        check("12345678", "***");
        check("123456789", "1234***6789");
        check("ключ-очень-длинный", "ключ***нный");
    }

    #[test]
    fn statuses_are_read_by_name_and_by_number() {
        let check = |name, expected| assert_eq!(KeyStatus::from_name(name), expected, "{name}");
        check("", Some(KeyStatus::Active));
        check("Enabled", Some(KeyStatus::Active));
        check("disabled", Some(KeyStatus::Disabled));
        check("quota_exceeded", Some(KeyStatus::QuotaExceeded));
        check("expired", Some(KeyStatus::Expired));
        check("2", Some(KeyStatus::QuotaExceeded));
        check("paused", None);
        assert_eq!(KeyStatus::from_number(3), Some(KeyStatus::Expired));
        assert_eq!(KeyStatus::from_number(4), None);
        assert_eq!(KeyStatus::from_number(-1), None);
    }

    #[test]
    fn what_is_shown_of_a_key_never_holds_it() {
        let mut entry = KeyEntry::new(KeyHash::of(b"sk-very-secret-key"));
        entry.name = Some("alice".into());
        let caller = entry.caller(b"sk-very-secret-key");
        assert_eq!(caller.masked_key(), Some("sk-v***-key"));
        for shown in [format!("{entry:?}"), entry.to_string(), format!("{caller:?}")] {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }
}
