//! What an operator may write about `prefix_aware`.

use serde::Deserialize;

/// `routing.prefix_aware`.
///
/// ```
/// use llmproxy_balancer::{PrefixAwareConfig, RoutingConfig, validate_routing};
///
/// let prefix_aware = PrefixAwareConfig { memory: 16 << 20, ..PrefixAwareConfig::default() };
/// assert!(validate_routing(&RoutingConfig { prefix_aware, ..RoutingConfig::default() }).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PrefixAwareConfig {
    /// Bytes of the table of what backends have seen.
    pub memory: u64,
    /// How many tokens a backend's own cache holds.
    pub cache_tokens: u64,
}

/// 64 MiB: some four million entries, each of one prefix at one backend.
pub const DEFAULT_INDEX_MEMORY: u64 = 64 << 20;
/// A million tokens. Too many costs little: a backend is believed to have what it has not any more, and nobody else has it
/// either. Too few, and conversations are torn away from where they are cached.
pub const DEFAULT_CACHE_TOKENS: u64 = 1_000_000;

/// Of less not even a small team would profit; more than any table of this kind needs is a slip of the unit.
const MEMORY: std::ops::RangeInclusive<u64> = 1 << 20..=16 << 30;

// === impl PrefixAwareConfig ===

impl PrefixAwareConfig {
    /// Adds what is wrong with it, each with the key's path below `routing`.
    pub(super) fn validate(&self, mistakes: &mut Vec<(String, String)>) {
        let mut wrong = |key: &str, message: String| mistakes.push((format!("prefix_aware.{key}"), message));
        if !MEMORY.contains(&self.memory) {
            wrong("memory", format!("is {} bytes; must be from 1MiB to 16GiB", self.memory));
        }
        if self.cache_tokens == 0 {
            wrong("cache_tokens", "must be 1 or more; leave it out where it is not known".into());
        }
    }
}

impl Default for PrefixAwareConfig {
    fn default() -> Self {
        Self { memory: DEFAULT_INDEX_MEMORY, cache_tokens: DEFAULT_CACHE_TOKENS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RoutingConfig, validate_routing};

    fn keys(prefix_aware: PrefixAwareConfig) -> Vec<String> {
        let routing = RoutingConfig { prefix_aware, ..RoutingConfig::default() };
        validate_routing(&routing).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn tables_of_no_use_and_of_no_end_are_mistakes() {
        for memory in [64, (1 << 20) - 1, (16 << 30) + 1] {
            assert_eq!(
                keys(PrefixAwareConfig { memory, cache_tokens: 0 }),
                ["prefix_aware.memory", "prefix_aware.cache_tokens"]
            );
        }
        assert!(keys(PrefixAwareConfig { memory: 1 << 20, cache_tokens: 1 }).is_empty());
    }
}
