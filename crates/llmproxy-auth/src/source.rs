//! Where keys are known.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::{self, BoxFuture, FutureExt};
use llmproxy_core::BoxError;

use crate::{KeyEntry, KeyHash};

/// Knows keys by their hashes.
///
/// ```
/// use futures_util::{FutureExt, future::BoxFuture};
/// use llmproxy_auth::{KeyEntry, KeyHash, KeySource};
/// use llmproxy_core::BoxError;
/// use std::sync::Arc;
///
/// /// Knows everyone, for a test.
/// struct Everyone;
///
/// impl KeySource for Everyone {
///     fn name(&self) -> &str {
///         "everyone"
///     }
///     fn lookup(&self, hash: KeyHash) -> BoxFuture<'_, Result<Option<Arc<KeyEntry>>, BoxError>> {
///         async move { Ok(Some(Arc::new(KeyEntry::new(hash)))) }.boxed()
///     }
/// }
/// ```
pub trait KeySource: Send + Sync {
    /// What a log calls it.
    fn name(&self) -> &str;

    /// The key with this hash; `None` where it is not known here.
    ///
    /// # Errors
    ///
    /// If it could not be found out. Then the request is refused: nobody gets in because a source is down.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time, with the request that waits for it.
    fn lookup(&self, hash: KeyHash) -> BoxFuture<'_, Result<Option<Arc<KeyEntry>>, BoxError>>;
}

/// The keys of one entry of the configuration.
///
/// ```
/// use llmproxy_auth::{KeyEntry, KeyHash, KeySource, StaticKeys};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let hash = KeyHash::of(b"sk-secret");
/// let keys = StaticKeys::new("file", [KeyEntry::new(hash)]);
/// assert!(keys.lookup(hash).await?.is_some());
/// assert!(keys.lookup(KeyHash::of(b"sk-guessed")).await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StaticKeys {
    name: Arc<str>,
    keys: HashMap<KeyHash, Arc<KeyEntry>>,
}

// === impl StaticKeys ===

impl StaticKeys {
    /// A source that knows exactly these keys; of two with the same hash the last.
    pub fn new(name: impl Into<Arc<str>>, keys: impl IntoIterator<Item = KeyEntry>) -> Self {
        let keys = keys.into_iter().map(|entry| (*entry.hash(), Arc::new(entry))).collect();
        Self { name: name.into(), keys }
    }
}

impl KeySource for StaticKeys {
    fn name(&self) -> &str {
        &self.name
    }

    fn lookup(&self, hash: KeyHash) -> BoxFuture<'_, Result<Option<Arc<KeyEntry>>, BoxError>> {
        future::ready(Ok(self.keys.get(&hash).cloned())).boxed()
    }
}
