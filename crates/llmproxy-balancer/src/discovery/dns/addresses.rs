//! The addresses of a name. Each kind is asked for by itself: a look-up of both at once is content with one of them where
//! the question for the other one fails, and then the backends of that kind would be gone.

use std::{net::IpAddr, time::Duration};

use futures_util::future::join_all;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        ProtoError,
        op::Query,
        rr::{Name, Record, RecordType},
    },
    system_conf::read_system_conf,
};

use super::{good_for, is_empty};
use crate::config::{DnsRecords, DnsSourceConfig};

/// Who is asked, and for what.
pub(super) struct Resolver {
    pub(super) dns: TokioResolver,
    hosts: Hosts,
    /// Where names are looked for that are not complete.
    pub(super) search: Vec<Name>,
    records: DnsRecords,
    kinds: &'static [RecordType],
}

/// What a name stands for.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// In an order that is always the same.
    pub(super) all: Vec<IpAddr>,
    pub(super) good_for: Option<Duration>,
}

/// Why that is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum AddressError {
    #[error("there is no such name as {0}")]
    NoSuchName(String),
    #[error("{name} is not a name: {error}")]
    NotAName { name: String, error: ProtoError },
    #[error("the name server can't say what {kind} records {name} has: {error}{advice}")]
    Failed { name: Name, kind: RecordType, error: NetError, advice: &'static str },
}

// === impl Resolver ===

impl Resolver {
    /// Made anew for each look-up, it has no cache, and knows what the system's settings are now.
    pub(super) fn new(config: &DnsSourceConfig) -> Result<Self, NetError> {
        let (servers, mut options) = match config.server() {
            None => read_system_conf()?,
            Some(server) => {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                let server = NameServerConfig::new(server.ip(), true, connections.into());
                (ResolverConfig::from_name_servers(vec![server]), ResolverOpts::default())
            }
        };
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let mut search: Vec<Name> = servers.domain.iter().chain(&servers.search).cloned().collect();
        search.dedup();
        let builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        let kinds: &[RecordType] = match config.records {
            DnsRecords::A => &[RecordType::A],
            DnsRecords::Aaaa => &[RecordType::AAAA],
            DnsRecords::Address | DnsRecords::Srv => &[RecordType::A, RecordType::AAAA],
        };
        let dns = builder.with_options(options).build()?;
        Ok(Self { dns, hosts: Hosts::from_system().unwrap_or_default(), search, records: config.records, kinds })
    }

    /// Those of the first name that has any, of those that `name` may stand for. That there are none is an answer, if the
    /// name is there.
    pub(super) async fn addresses(&self, name: &str) -> Result<Addresses, AddressError> {
        if let Ok(address) = name.parse() {
            return Ok(Addresses { all: vec![address], good_for: None });
        }
        let names = self.names(name).map_err(|error| AddressError::NotAName { name: name.to_owned(), error })?;
        let (mut is_there, mut failed) = (false, None);
        for name in names {
            let mut records = self.written(&name);
            if !records.is_empty() {
                return Ok(Addresses::of(&records));
            }
            let answers = join_all(self.kinds.iter().map(|kind| self.dns.lookup(name.clone(), *kind))).await;
            let (mut is_here, mut problem) = (false, None);
            for (answer, kind) in answers.into_iter().zip(self.kinds) {
                match answer {
                    Ok(found) => records.extend_from_slice(found.answers()),
                    Err(error) if error.is_nx_domain() => continue,
                    Err(error) if is_empty(&error) => {}
                    Err(error) => {
                        problem = Some((*kind, error));
                        continue;
                    }
                }
                is_here = true;
            }
            if let Some((kind, error)) = problem {
                let advice = match (self.records, kind) {
                    (DnsRecords::Address, RecordType::A) if is_here => "; if it never can, write `type: aaaa`",
                    (DnsRecords::Address, _) if is_here => "; if it never can, write `type: a`",
                    _ => "",
                };
                let error = AddressError::Failed { name, kind, error, advice };
                if is_here {
                    // This is the name, so no other one will do.
                    return Err(error);
                }
                failed = Some(error);
            } else if !records.is_empty() {
                return Ok(Addresses::of(&records));
            }
            is_there |= is_here;
        }
        match failed {
            Some(error) => Err(error),
            None if is_there => Ok(Addresses::default()),
            None => Err(AddressError::NoSuchName(name.to_owned())),
        }
    }

    /// What the system's hosts file has: where it has any, nobody is asked.
    fn written(&self, name: &Name) -> Vec<Record> {
        let found =
            self.kinds.iter().filter_map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), *kind)));
        found.flat_map(|found| found.answers().to_vec()).collect()
    }

    /// The names that this one may stand for, in their order: see `search` and `ndots` in resolv.conf(5).
    fn names(&self, name: &str) -> Result<Vec<Name>, ProtoError> {
        let name = Name::from_utf8(name)?;
        let mut complete = name.clone();
        complete.set_fqdn(true);
        if name.is_fqdn() {
            return Ok(vec![complete]);
        }
        let is_first = usize::from(name.num_labels()) > self.dns.options().ndots || name.is_localhost();
        let mut names: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        names.insert(if is_first { 0 } else { names.len() }, complete);
        Ok(names)
    }
}

// === impl Addresses ===

impl Addresses {
    fn of(records: &[Record]) -> Self {
        let mut all: Vec<IpAddr> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
        // Servers turn them round, which is no news.
        all.sort_unstable();
        all.dedup();
        Self { all, good_for: good_for(records) }
    }
}
