//! What callers have used: one account each, and one for all of them together.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, PoisonError},
};

use llmproxy_core::Caller;

use crate::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    tokens::TokenBucket,
};

/// Whose account it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// All callers together.
    Everyone,
    /// A key.
    Fingerprint(Arc<str>),
    /// No key, but an address. Of an IPv6 address only the network: a client has all addresses in it.
    Address(IpAddr),
    /// Neither.
    Anonymous,
}

/// What one caller has used. Knows no limits; those may change while it lives.
#[derive(Debug)]
pub(crate) struct Account {
    key: Key,
    /// Of `requests_per_second`: when the account will be unused again, in nanoseconds since the limiter's epoch.
    pub(crate) per_second: AtomicU64,
    /// The same of `requests_per_minute`.
    pub(crate) per_minute: AtomicU64,
    /// Tokens of `tokens_per_minute`.
    pub(crate) tokens: TokenBucket,
    in_flight: AtomicU64,
}

/// A request in flight; counted in its account until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Account>);

/// All accounts of callers, found by key.
///
/// Keys come from a key store and are as many as that has; an account of its own is never denied to one of them.
/// Addresses come from anywhere, so their number is bounded: those beyond it share the anonymous account until idle
/// ones are forgotten.
pub(crate) struct Accounts {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    anonymous: Arc<Account>,
}

#[derive(Default)]
struct Shard {
    accounts: HashMap<Key, Arc<Account>>,
    addresses: usize,
}

/// Enough that requests of different callers seldom meet at one lock.
const SHARDS: usize = 64;

/// Addresses with an account of their own; some 16 MiB when all are in use.
const MAX_ADDRESSES: usize = 65_536;

// === impl Key ===

impl Key {
    /// Whose account a request is for.
    pub(crate) fn of(caller: Option<&Caller>, client_ip: Option<IpAddr>) -> Self {
        match (caller.and_then(Caller::fingerprint), client_ip.map(|ip| ip.to_canonical())) {
            (Some(fingerprint), _) => Self::Fingerprint(fingerprint.clone()),
            (None, Some(IpAddr::V6(ip))) => {
                let network = u128::from(ip) & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from(network).into())
            }
            (None, Some(ip)) => Self::Address(ip),
            (None, None) => Self::Anonymous,
        }
    }
}

// === impl Account ===

impl Account {
    /// An account that has used nothing.
    pub(crate) fn new(key: Key) -> Arc<Self> {
        Arc::new(Self {
            key,
            per_second: AtomicU64::new(0),
            per_minute: AtomicU64::new(0),
            tokens: TokenBucket::default(),
            in_flight: AtomicU64::new(0),
        })
    }

    /// Counts one more request, unless there are `max` already.
    pub(crate) fn enter(self: &Arc<Self>, max: Option<u64>) -> Option<InFlight> {
        let max = max.unwrap_or(u64::MAX);
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then(|| count + 1))
            .ok()
            .map(|_| InFlight(self.clone()))
    }

    /// How many requests are in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the account is as good as new, `now` nanoseconds after the epoch.
    fn is_idle(&self, now: u64, tokens_per_minute: Option<u64>) -> bool {
        self.per_second.load(Ordering::Relaxed) <= now
            && self.per_minute.load(Ordering::Relaxed) <= now
            && tokens_per_minute.is_none_or(|budget| self.tokens.is_empty(budget, now))
    }
}

// Governor wants keys that can be told apart and hashed, although its states are found without.
impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Account {}

impl Hash for Account {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Accounts ===

impl Accounts {
    /// No accounts yet.
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            anonymous: Account::new(Key::Anonymous),
        }
    }

    /// The account of `key`.
    pub(crate) fn find(&self, key: Key) -> Arc<Account> {
        if key == Key::Anonymous {
            return self.anonymous.clone();
        }
        let place = self.hasher.hash_one(&key) % SHARDS as u64;
        let mut shard = lock(&self.shards[place as usize]);
        if let Some(account) = shard.accounts.get(&key) {
            return account.clone();
        }
        if let Key::Address(_) = key {
            if shard.addresses >= MAX_ADDRESSES / SHARDS {
                return self.anonymous.clone();
            }
            shard.addresses += 1;
        }
        let account = Account::new(key.clone());
        shard.accounts.insert(key, account.clone());
        account
    }

    /// Forgets the accounts that nobody uses and that are as good as new.
    pub(crate) fn sweep(&self, now: u64, tokens_per_minute: Option<u64>) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            // Whoever uses an account holds a handle to it, and handles are given out under this lock.
            shard
                .accounts
                .retain(|_, account| Arc::strong_count(account) > 1 || !account.is_idle(now, tokens_per_minute));
            shard.addresses = shard.accounts.keys().filter(|key| matches!(key, Key::Address(_))).count();
            shard.accounts.shrink_to_fit();
        }
    }

    /// How many accounts there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).accounts.len()).sum()
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_are_one_caller() {
        let key = |ip: &str| Key::of(None, Some(ip.parse().unwrap()));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.2"), key("10.0.0.1"));
    }

    #[test]
    fn a_key_counts_before_the_address() {
        let caller = Caller::named("alice").with_fingerprint("f");
        assert_eq!(Key::of(Some(&caller), Some([10, 0, 0, 1].into())), Key::Fingerprint("f".into()));
        assert_eq!(Key::of(Some(&Caller::anonymous()), None), Key::Anonymous);
    }

    #[test]
    fn addresses_beyond_the_bound_share_an_account_but_keys_never_do() {
        let accounts = Accounts::new();
        for address in 0..2 * MAX_ADDRESSES as u32 {
            accounts.find(Key::Address(std::net::Ipv4Addr::from(address).into()));
        }
        assert!(accounts.len() <= MAX_ADDRESSES);
        let late = accounts.find(Key::Address([203, 0, 113, 1].into()));
        assert_eq!(late.key, Key::Anonymous);
        assert_ne!(accounts.find(Key::Fingerprint("f".into())).key, Key::Anonymous);
        accounts.sweep(1, None);
        assert_eq!(accounts.len(), 0);
        assert_ne!(accounts.find(Key::Address([203, 0, 113, 1].into())).key, Key::Anonymous);
    }

    #[test]
    fn an_account_in_use_is_not_forgotten() {
        let accounts = Accounts::new();
        let in_flight = accounts.find(Key::Fingerprint("f".into())).enter(None);
        accounts.sweep(1, None);
        assert_eq!(accounts.len(), 1);
        drop(in_flight);
        accounts.sweep(1, None);
        assert_eq!(accounts.len(), 0);
    }
}
