//! The builtin key store: one SQLite file, all of it in memory.
//!
//! A request is answered from a snapshot of the whole table. The file is read again when another process has written it
//! (`llmproxy keys revoke` beside a running proxy) and after each write of our own.

mod file;
mod go;
mod schema;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::{self, BoxFuture, FutureExt};
use ipnet::IpNet;
use jiff::Timestamp;
use llmproxy_core::{BoxError, OnAbort};
use metrics::{counter, gauge};
use sqlx::{Connection, SqliteConnection};
use tokio::{sync::Mutex, task::JoinHandle, time::MissedTickBehavior};
use uuid::Uuid;

use crate::{
    AddressRules, KeyEntry, KeyHash, KeySource, KeyStatus, KeyStoreError, mask,
    metrics::{KEYS, REFRESH_FAILURES},
};

/// How often it is looked whether another process has written the file.
const POLL: Duration = Duration::from_secs(1);

/// The builtin key store. Clones are the same store.
///
/// The file may be one of the Go program that llmproxy replaces. It is then only read, and never changed by a byte; the
/// store itself is `keys.llmproxy.db` beside `keys.db`, into which every key that is not there yet is taken over, as a
/// hash, each time that the store is opened. What was taken over is ours from then on: a key that is revoked here stays
/// revoked, whatever the old file says. When the old file is gone, the one beside its place is used.
///
/// A file must not be replaced under an open store; stop the proxy to restore a backup.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir().join(format!("llmproxy-doc-{}", std::process::id()));
/// use llmproxy_auth::{KeyStore, NewKey};
///
/// let store = KeyStore::open(folder.join("keys.db")).await?;
/// let created = store.create(NewKey::named("alice")).await?;
/// println!("{}", created.key); // The only time that it is seen.
/// store.revoke("alice").await?;
/// store.close().await;
/// # std::fs::remove_dir_all(folder)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KeyStore(Arc<Shared>);

/// What a new key is to be. Without anything said it has no name and may do everything, for ever.
///
/// ```
/// use llmproxy_auth::{NewKey, parse_net};
///
/// let new = NewKey {
///     allowed_models: vec!["qwen2.5-32b".into()],
///     allowed_ips: vec![parse_net("10.0.0.0/8")?],
///     ..NewKey::named("alice")
/// };
/// # assert!(new.expires_at.is_none());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// What logs and records call it; unique among the keys that are not disabled.
    pub name: Option<String>,
    /// The user that it belongs to.
    pub user_id: Option<String>,
    /// The models that it may use; empty means all.
    pub allowed_models: Vec<String>,
    /// What is billed when its holder leaves an answer; `None` is for the meter's configuration to say.
    pub on_abort: Option<OnAbort>,
    /// What its requests may be routed by.
    pub tag: Option<String>,
    /// Where it may be used from; empty means everywhere.
    pub allowed_ips: Vec<IpNet>,
    /// Where it may not be used from.
    pub denied_ips: Vec<IpNet>,
    /// When it begins to be valid.
    pub starts_at: Option<Timestamp>,
    /// When it ends to be valid.
    pub expires_at: Option<Timestamp>,
}

/// A key that was just made. Its `Debug` leaves the key out.
#[derive(Clone)]
pub struct Created {
    /// The key in clear. It is kept nowhere.
    pub key: String,
    /// What the store knows of it.
    pub entry: Arc<KeyEntry>,
}

struct Shared {
    keys: ArcSwap<Snapshot>,
    /// The one connection to the file; `None` once the store is closed. No request waits for it.
    database: Mutex<Option<Database>>,
}

type Snapshot = HashMap<KeyHash, Arc<KeyEntry>>;

struct Database {
    connection: SqliteConnection,
    /// SQLite's count of what other connections have written, as of the snapshot. It does not count what this one writes: so
    /// it is `None` while that is under way, and stays so if whoever writes is dropped before the snapshot is new.
    version: Option<i64>,
}

// === impl KeyStore ===

impl KeyStore {
    /// Opens the store at `path`. Its folder and the file are made where they are missing.
    ///
    /// # Errors
    ///
    /// If the file can't be made or read, or is the database of something else.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, it may have made the file; opening it again goes on from there.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, KeyStoreError> {
        let (path, old) = file::locate(path.as_ref()).await?;
        let mut connection = file::open(&path).await?;
        schema::prepare(&mut connection).await?;
        if let Some(old) = old {
            let found = old.keys.len();
            let imported = import(&mut connection, &old.keys).await?;
            tracing::info!(
                from = %old.path.display(), to = %path.display(), imported, found,
                "imported API keys of the Go program, hashed; its file stays as it is"
            );
        }
        let mut database = Database { connection, version: None };
        let keys = ArcSwap::from_pointee(database.load().await?);
        let shared = Shared { keys, database: Mutex::new(Some(database)) };
        shared.count();
        Ok(Self(Arc::new(shared)))
    }

    /// Starts a task that looks each second whether another process has written the file. It ends with the store. A
    /// failure keeps the last snapshot, is logged, and is tried again.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the handle leaves the task running; aborting it leaves the snapshot as it is.
    pub fn watch(&self) -> JoinHandle<()> {
        tokio::spawn(watch(Arc::downgrade(&self.0)))
    }

    /// Looks now whether another process has written the file, and reads it again if so. Says whether it did.
    ///
    /// # Errors
    ///
    /// If the file can't be read; the last snapshot stays.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the snapshot is the old one.
    pub async fn refresh(&self) -> Result<bool, KeyStoreError> {
        self.0.refresh().await
    }

    /// Makes a key: `sk-` and 64 hex digits from the system's source of randomness.
    ///
    /// # Errors
    ///
    /// If the name is taken, or the file can't be written.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the key may be in the store without anyone knowing it; revoke it by its name.
    pub async fn create(&self, new: NewKey) -> Result<Created, KeyStoreError> {
        // Each is 122 random bits, so the key has 244.
        let key = format!("sk-{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let entry = new.entry(&key);
        let mut database = self.0.database.lock().await;
        let database = database.as_mut().ok_or(KeyStoreError::Closed)?;
        let mut transaction = database.connection.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(name) = &entry.name {
            let taken = schema::load(&mut transaction).await?;
            if taken.iter().any(|other| other.name == entry.name && other.status != KeyStatus::Disabled) {
                return Err(KeyStoreError::NameTaken(name.to_string()));
            }
        }
        schema::insert(&mut transaction, &entry).await?;
        database.version = None;
        transaction.commit().await?;
        self.0.replace(database.load().await?);
        Ok(Created { key, entry: Arc::new(entry) })
    }

    /// Disables a key, named by its name, its fingerprint or itself. A key that was disabled before stays so.
    ///
    /// # Errors
    ///
    /// If there is no such key, or several of that name are in use, or the file can't be written.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, it may or may not have been done; do it again. If it was, the snapshot has it at the next
    /// [`refresh`](Self::refresh), which [`watch`](Self::watch) asks for each second.
    pub async fn revoke(&self, key: &str) -> Result<Arc<KeyEntry>, KeyStoreError> {
        let key = key.trim();
        let hash = KeyHash::of(key.as_bytes());
        let mut database = self.0.database.lock().await;
        let database = database.as_mut().ok_or(KeyStoreError::Closed)?;
        let mut transaction = database.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut fitting = schema::load(&mut transaction).await?;
        let exact = |entry: &KeyEntry| *entry.hash() == hash || entry.fingerprint().eq_ignore_ascii_case(key);
        if fitting.iter().any(exact) {
            fitting.retain(exact);
        } else {
            fitting.retain(|entry| entry.name.as_deref() == Some(key));
            // Of a name that was used again, the key in use is meant.
            if fitting.iter().any(|entry| entry.status != KeyStatus::Disabled) {
                fitting.retain(|entry| entry.status != KeyStatus::Disabled);
            } else {
                fitting.truncate(1);
            }
        }
        let mut entry = match fitting.len() {
            0 => return Err(KeyStoreError::NotFound),
            1 => fitting.remove(0),
            _ => {
                let fingerprints = fitting.iter().map(|entry| entry.fingerprint().to_string());
                return Err(KeyStoreError::Ambiguous(fingerprints.collect()));
            }
        };
        schema::set_status(&mut transaction, entry.hash(), KeyStatus::Disabled).await?;
        database.version = None;
        transaction.commit().await?;
        self.0.replace(database.load().await?);
        entry.status = KeyStatus::Disabled;
        Ok(Arc::new(entry))
    }

    /// All keys as of the snapshot, newest first.
    pub fn list(&self) -> Vec<Arc<KeyEntry>> {
        let mut keys: Vec<_> = self.0.keys.load().values().cloned().collect();
        keys.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.fingerprint().cmp(b.fingerprint())));
        keys
    }

    /// How many keys there are, whatever their status.
    pub fn len(&self) -> usize {
        self.0.keys.load().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.keys.load().is_empty()
    }

    /// Closes the file. What is in memory still answers; whatever needs the file fails from now on.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the file is closed all the same, a little later.
    pub async fn close(&self) {
        if let Some(database) = self.0.database.lock().await.take()
            && let Err(error) = database.connection.close().await
        {
            tracing::warn!(%error, "the key store did not close in good order; nothing is lost");
        }
    }
}

impl KeySource for KeyStore {
    fn name(&self) -> &str {
        "builtin"
    }

    fn lookup(&self, hash: KeyHash) -> BoxFuture<'_, Result<Option<Arc<KeyEntry>>, BoxError>> {
        future::ready(Ok(self.0.keys.load().get(&hash).cloned())).boxed()
    }
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").field("keys", &self.len()).finish_non_exhaustive()
    }
}

// === impl NewKey ===

impl NewKey {
    /// A key of that name that may do everything.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    fn entry(self, key: &str) -> KeyEntry {
        let text =
            |text: Option<String>| text.map(|text| text.trim().into()).filter(|text: &Arc<str>| !text.is_empty());
        let mut entry = KeyEntry::new(KeyHash::of(key.as_bytes()));
        entry.masked = Some(mask(key).into());
        entry.name = text(self.name);
        entry.user_id = text(self.user_id);
        entry.addresses = AddressRules { allowed: self.allowed_ips, denied: self.denied_ips };
        if !self.allowed_models.is_empty() {
            entry.allowed_models = Some(Arc::new(BTreeSet::from_iter(self.allowed_models)));
        }
        entry.on_abort = self.on_abort;
        entry.tag = text(self.tag);
        entry.starts_at = self.starts_at;
        entry.expires_at = self.expires_at;
        entry.created_at = Some(Timestamp::now());
        entry
    }
}

// === impl Created ===

impl fmt::Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("entry", &self.entry).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    async fn refresh(&self) -> Result<bool, KeyStoreError> {
        let mut database = self.database.lock().await;
        let database = database.as_mut().ok_or(KeyStoreError::Closed)?;
        if Some(schema::data_version(&mut database.connection).await?) == database.version {
            return Ok(false);
        }
        self.replace(database.load().await?);
        Ok(true)
    }

    fn replace(&self, keys: Snapshot) {
        self.keys.store(Arc::new(keys));
        self.count();
    }

    fn count(&self) {
        gauge!(KEYS).set(self.keys.load().len() as f64);
    }
}

// === impl Database ===

impl Database {
    async fn load(&mut self) -> Result<Snapshot, KeyStoreError> {
        // Asked first: a write between the two is then seen again at the next look, not missed.
        let version = schema::data_version(&mut self.connection).await?;
        let entries = schema::load(&mut self.connection).await?;
        self.version = Some(version);
        Ok(entries.into_iter().map(|entry| (*entry.hash(), Arc::new(entry))).collect())
    }
}

async fn import(connection: &mut SqliteConnection, entries: &[KeyEntry]) -> Result<usize, KeyStoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut imported = 0;
    for entry in entries {
        imported += usize::from(schema::insert(&mut transaction, entry).await?);
    }
    transaction.commit().await?;
    Ok(imported)
}

async fn watch(store: Weak<Shared>) {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let Some(store) = store.upgrade() else { return };
        match store.refresh().await {
            Ok(_) if failing => {
                failing = false;
                tracing::info!("the key store can be read again");
            }
            Ok(true) => tracing::info!(keys = store.keys.load().len(), "another process wrote the keys; read again"),
            Ok(false) => {}
            Err(KeyStoreError::Closed) => return,
            Err(error) => {
                counter!(REFRESH_FAILURES).increment(1);
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "the key store can't be read again; the keys known so far stay in force");
                }
            }
        }
    }
}
