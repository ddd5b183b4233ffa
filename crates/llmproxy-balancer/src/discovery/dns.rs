//! Backends that a name stands for: its addresses, or what its SRV records say (RFC 2782).

use std::{net::IpAddr, time::Duration};

use hickory_resolver::{
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{RData, Record, RecordType},
    },
};
use llmproxy_core::BoxError;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{entry::complete, source::Answer};
use crate::config::{BackendDefaults, DnsRecords, DnsSourceConfig, Scheme};

mod addresses;
#[cfg(test)]
mod tests;

use addresses::{AddressError, Addresses, Resolver};

/// The longest that a look-up may take, with all its questions.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An answer is taken to be good for as long as this at least, so that a TTL of 0 is no flood.
const MIN_GOOD_FOR: Duration = Duration::from_secs(1);

/// A backend that an SRV record names.
struct Service {
    host: String,
    port: u16,
    priority: u16,
    weight: u16,
}

// === impl Service ===

impl Service {
    fn entry(&self, config: &DnsSourceConfig, host: &str) -> Map<String, Value> {
        let mut entry = entry(config, host, self.port);
        entry.insert("tier".to_owned(), self.priority.into());
        // There 0 is the smallest share, here it is none.
        entry.insert("weight".to_owned(), self.weight.max(1).into());
        entry
    }
}

// === impl Answer ===

impl Answer {
    fn add(&mut self, entry: Map<String, Value>, defaults: &BackendDefaults) {
        match complete(entry, defaults) {
            Ok(backend) => self.backends.push(backend),
            Err(problem) => self.problems.push(problem),
        }
    }
}

/// Looks the name up. That the name has no records is an answer, if one that is not believed at once; that there is no such name is none: where a name was, a
/// zone that is gone is more likely a fault than a wish.
pub(super) async fn look_up(config: &DnsSourceConfig, defaults: &BackendDefaults) -> Result<Answer, BoxError> {
    let look_up = async {
        let resolver = Resolver::new(config)?;
        match config.records {
            DnsRecords::Srv => services(&resolver, config, defaults).await,
            DnsRecords::Address | DnsRecords::A | DnsRecords::Aaaa => {
                let Addresses { all, good_for } = resolver.addresses(&config.name).await?;
                let mut answer = Answer { good_for, is_bare: all.is_empty(), ..Answer::default() };
                for address in all {
                    answer.add(entry(config, &host(address), config.port), defaults);
                }
                Ok(answer)
            }
        }
    };
    timeout(TIMEOUT, look_up).await.map_err(|_| "the name server did not answer in time")?
}

async fn services(
    resolver: &Resolver,
    config: &DnsSourceConfig,
    defaults: &BackendDefaults,
) -> Result<Answer, BoxError> {
    let found = match resolver.dns.lookup(&*config.name, RecordType::SRV).await {
        Ok(found) => found,
        Err(error) if is_empty(&error) => return Ok(Answer { is_bare: true, ..Answer::default() }),
        Err(error) => return Err(error.into()),
    };
    let service = |record: &Record| match &record.data {
        // The root is how a name says that it has no such service.
        RData::SRV(srv) if !srv.target.is_root() => {
            Some(Service { host: srv.target.to_utf8(), port: srv.port, priority: srv.priority, weight: srv.weight })
        }
        _ => None,
    };
    let mut services: Vec<Service> = found.answers().iter().filter_map(service).collect();
    services.sort_by(|one, other| (one.priority, &one.host, one.port).cmp(&(other.priority, &other.host, other.port)));
    let mut answer = Answer { good_for: good_for(found.answers()), ..Answer::default() };
    // Services of which nobody knows where they are; that there are none is said by the root, and meant.
    let mut is_nowhere = !services.is_empty();
    for service in services {
        let name = service.host.trim_end_matches('.');
        if config.scheme == Scheme::Https {
            // What its certificate is for.
            answer.add(service.entry(config, name), defaults);
            is_nowhere = false;
            continue;
        }
        // By address: the one who is asked here may be the only one who knows the name.
        let Addresses { all, good_for } = match resolver.addresses(&service.host).await {
            Err(AddressError::NoSuchName(_)) => Addresses::default(),
            found => found?,
        };
        if all.is_empty() {
            answer.problems.push(format!("{name} has no address"));
        }
        is_nowhere &= all.is_empty();
        for address in all {
            answer.add(service.entry(config, &host(address)), defaults);
        }
        answer.good_for = [answer.good_for, good_for].into_iter().flatten().min();
    }
    answer.is_bare = is_nowhere;
    Ok(answer)
}

/// As an entry of a list would be.
fn entry(config: &DnsSourceConfig, host: &str, port: u16) -> Map<String, Value> {
    let scheme = match config.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let url = format!("{scheme}://{host}:{port}");
    Map::from_iter([("name".to_owned(), format!("{host}:{port}").into()), ("url".to_owned(), url.into())])
}

/// As it stands in a URL.
fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn good_for(records: &[Record]) -> Option<Duration> {
    records.iter().map(|record| Duration::from_secs(record.ttl.into()).max(MIN_GOOD_FOR)).min()
}

/// Whether the name is there and has none of these records.
fn is_empty(error: &NetError) -> bool {
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NoError)
}
