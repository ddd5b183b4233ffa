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
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let zone: HashMap<String, Vec<RData>> =
            zone.iter().map(|(name, records)| ((*name).to_owned(), records.to_vec())).collect();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (size, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut message = Message::from_vec(&buffer[..size]).unwrap().into_response();
                let query = message.queries[0].clone();
                let name = query.name().to_lowercase().to_utf8();
                match zone.get(name.trim_end_matches('.')) {
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
        let (name, server) = (name.to_owned(), Some(self.address.clone()));
        let port = if records == DnsRecords::Srv { 0 } else { 8000 };
        let config = DnsSourceConfig { name, records, port, scheme, server, ..DnsSourceConfig::default() };
        look_up(&config, &defaults).await
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
