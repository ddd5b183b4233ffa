//! Look-ups at a name server that says what a test tells it.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use hickory_resolver::proto::{
    op::Message,
    rr::{
        Name,
        rdata::{A, AAAA, SRV},
    },
};
use tokio::{net::UdpSocket, task::JoinHandle};

use super::*;

const TTL: u32 = 7;

/// A name server; it ends when it is dropped.
struct Server {
    address: String,
    task: JoinHandle<()>,
}

impl Server {
    /// It knows these names, some of which may have no records, and no others.
    async fn start(zone: &[(&str, &[RData])]) -> Self {
        Self::start_failing(zone, &[]).await
    }

    /// The same, and these questions it can't answer.
    async fn start_failing(zone: &[(&str, &[RData])], failing: &[(&str, RecordType)]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let zone: HashMap<String, Vec<RData>> =
            zone.iter().map(|(name, records)| ((*name).to_owned(), records.to_vec())).collect();
        let failing: Vec<(String, RecordType)> =
            failing.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (size, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut message = Message::from_vec(&buffer[..size]).unwrap().into_response();
                let query = message.queries[0].clone();
                let name = query.name().to_lowercase().to_utf8();
                let name = name.trim_end_matches('.');
                match zone.get(name) {
                    _ if failing.contains(&(name.to_owned(), query.query_type())) => {
                        message.metadata.response_code = ResponseCode::ServFail;
                    }
                    None => message.metadata.response_code = ResponseCode::NXDomain,
                    Some(records) => {
                        let fits = records.iter().filter(|record| record.record_type() == query.query_type());
                        message
                            .add_answers(fits.map(|data| Record::from_rdata(query.name().clone(), TTL, data.clone())));
                    }
                }
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { address, task }
    }

    async fn look_up(&self, name: &str, records: DnsRecords) -> Result<Answer, BoxError> {
        self.look_up_over(Scheme::Http, name, records).await
    }

    async fn look_up_over(&self, scheme: Scheme, name: &str, records: DnsRecords) -> Result<Answer, BoxError> {
        let defaults = serde_json::from_str(r#"{"models": ["m"]}"#)?;
        look_up(&self.config(scheme, name, records), &defaults).await
    }

    fn config(&self, scheme: Scheme, name: &str, records: DnsRecords) -> DnsSourceConfig {
        let (name, server) = (name.to_owned(), Some(self.address.clone()));
        let port = if records == DnsRecords::Srv { 0 } else { 8000 };
        DnsSourceConfig { name, records, port, scheme, server, ..DnsSourceConfig::default() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(10, 0, 0, last)))
}

fn aaaa(last: u16) -> RData {
    RData::AAAA(AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)))
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, Name::from_str(target).unwrap()))
}

fn urls(answer: &Answer) -> Vec<&str> {
    answer.backends.iter().map(|backend| &*backend.url).collect()
}

#[tokio::test]
async fn a_name_stands_for_its_addresses_in_an_order_that_stays() {
    let server = Server::start(&[("vllm.internal", &[a(9), aaaa(1), a(2)])]).await;
    let answer = server.look_up("vllm.internal", DnsRecords::Address).await.unwrap();
    assert_eq!(urls(&answer), ["http://10.0.0.2:8000", "http://10.0.0.9:8000", "http://[fd00::1]:8000"]);
    assert_eq!(answer.backends[2].name.as_deref(), Some("[fd00::1]:8000"));
    assert_eq!(answer.backends[2].models, ["m"]);
    assert!(!answer.is_bare);
    assert_eq!(answer.good_for, Some(Duration::from_secs(TTL.into())));
    let answer = server.look_up("vllm.internal", DnsRecords::A).await.unwrap();
    assert_eq!(urls(&answer), ["http://10.0.0.2:8000", "http://10.0.0.9:8000"]);
    let answer = server.look_up("vllm.internal", DnsRecords::Aaaa).await.unwrap();
    assert_eq!(urls(&answer), ["http://[fd00::1]:8000"]);
}

#[tokio::test]
async fn srv_records_say_ports_tiers_and_weights() {
    let server = Server::start(&[
        (
            "_http._tcp.vllm.internal",
            &[srv(20, 5, 8002, "b.internal."), srv(10, 0, 8001, "a.internal."), srv(10, 7, 8003, "gone.internal.")],
        ),
        ("a.internal", &[a(1)]),
        ("b.internal", &[a(2), a(3)]),
    ])
    .await;
    let answer = server.look_up("_http._tcp.vllm.internal", DnsRecords::Srv).await.unwrap();
    assert_eq!(urls(&answer), ["http://10.0.0.1:8001", "http://10.0.0.2:8002", "http://10.0.0.3:8002"]);
    let shares: Vec<_> = answer.backends.iter().map(|backend| (backend.tier, backend.weight)).collect();
    assert_eq!(shares, [(10, 1), (20, 5), (20, 5)]);
    assert_eq!(answer.problems, ["gone.internal has no address"]);
    assert_eq!(answer.good_for, Some(Duration::from_secs(TTL.into())));

    // Over TLS the certificate is for the name.
    let answer = server.look_up_over(Scheme::Https, "_http._tcp.vllm.internal", DnsRecords::Srv).await.unwrap();
    assert_eq!(urls(&answer), ["https://a.internal:8001", "https://gone.internal:8003", "https://b.internal:8002"]);
}

#[tokio::test]
async fn a_name_without_records_has_no_backends_and_one_that_is_not_there_is_a_fault() {
    let zone: [(&str, &[RData]); 3] = [
        ("empty.internal", &[]),
        ("none.internal", &[srv(0, 0, 0, ".")]),
        ("lost.internal", &[srv(0, 0, 80, "gone.internal.")]),
    ];
    let server = Server::start(&zone).await;
    for records in [DnsRecords::Address, DnsRecords::Srv] {
        let answer = server.look_up("empty.internal", records).await.unwrap();
        assert!(urls(&answer).is_empty() && answer.is_bare, "{answer:?}");
        let error = server.look_up("other.internal", records).await.unwrap_err();
        assert!(error.to_string().contains("other.internal"), "{error}");
    }
    // That there is no such service is meant; that nobody knows where it is may pass.
    for (name, is_bare) in [("none.internal", false), ("lost.internal", true)] {
        let answer = server.look_up(name, DnsRecords::Srv).await.unwrap();
        assert!(urls(&answer).is_empty() && answer.is_bare == is_bare, "{answer:?}");
    }
}

#[tokio::test]
async fn a_question_that_fails_is_no_answer_whatever_the_other_one_says() {
    use RecordType as Kind;
    let zone: [(&str, &[RData]); 3] = [
        ("both.internal", &[a(1), aaaa(1)]),
        ("none.internal", &[]),
        ("_http._tcp.internal", &[srv(0, 0, 80, "both.internal.")]),
    ];
    let all = [(Kind::A, "A", "`type: aaaa`", DnsRecords::Aaaa), (Kind::AAAA, "AAAA", "`type: a`", DnsRecords::A)];
    for (failing, kind, advice, other) in all {
        let server = Server::start_failing(&zone, &[("both.internal", failing), ("none.internal", failing)]).await;
        for name in ["both.internal", "none.internal"] {
            let error = server.look_up(name, DnsRecords::Address).await.unwrap_err().to_string();
            let told = [format!("what {kind} records {name}. has"), advice.to_owned()];
            assert!(told.iter().all(|told| error.contains(told)), "{error}");
        }
        let error = server.look_up("_http._tcp.internal", DnsRecords::Srv).await.unwrap_err().to_string();
        assert!(error.contains("both.internal") && !error.contains("type"), "{error}");
        // What is not asked can't fail.
        assert_eq!(server.look_up("both.internal", other).await.unwrap().backends.len(), 1);
    }
}

#[tokio::test]
async fn a_name_that_is_not_complete_is_the_first_that_is_there() {
    let zone: [(&str, &[RData]); 4] = [
        ("vllm.one.internal", &[]),
        ("vllm.two.internal", &[a(2)]),
        ("vllm.three.internal", &[a(3), aaaa(3)]),
        ("half.two.internal", &[a(4)]),
    ];
    let failing = [("half.one.internal", RecordType::A), ("half.two.internal", RecordType::AAAA)];
    let server = Server::start_failing(&zone, &failing).await;
    let mut resolver = Resolver::new(&server.config(Scheme::Http, "", DnsRecords::Address)).unwrap();
    resolver.search = ["one.internal.", "two.internal.", "three.internal."].map(|name| name.parse().unwrap()).to_vec();
    // Both kinds are those of one name.
    assert_eq!(resolver.addresses("vllm").await.unwrap().all, [Ipv4Addr::new(10, 0, 0, 2)]);
    // Where a domain can't say anything the next one is asked; where it says that it has the name, none is.
    let error = resolver.addresses("half").await.unwrap_err().to_string();
    assert!(error.contains("AAAA") && error.contains("half.two.internal"), "{error}");
    resolver.search.remove(1);
    let error = resolver.addresses("half").await.unwrap_err().to_string();
    assert!(error.contains("half.one.internal"), "{error}");
    assert_eq!(resolver.addresses("vllm.three.internal.").await.unwrap().all.len(), 2);
    assert_eq!(resolver.addresses("10.0.0.9").await.unwrap().all, [Ipv4Addr::new(10, 0, 0, 9)]);
    let error = resolver.addresses("lost").await.unwrap_err();
    assert!(matches!(error, AddressError::NoSuchName(_)), "{error}");
}
