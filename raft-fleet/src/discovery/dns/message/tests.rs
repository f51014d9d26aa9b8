//! Messages as they are, as they should not be, and garbage.

use std::net::{Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{A, AAAA, CNAME, SRV};

use super::*;

const NAME: &str = "_db._udp.corp";

fn record<'a>(name: &'a str, rdata: RData<'a>) -> ResourceRecord<'a> {
    ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, 10, rdata)
}

fn srv(priority: u16, port: u16, host: &str) -> RData<'_> {
    RData::SRV(SRV { priority, weight: 5, port, target: Name::new(host).unwrap() })
}

/// A reply to `query`, with these records.
fn reply(query: &[u8], answers: Vec<ResourceRecord<'static>>, others: Vec<ResourceRecord<'static>>) -> Vec<u8> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    packet.answers = answers;
    packet.additional_records = others;
    packet.build_bytes_vec_compressed().unwrap()
}

fn full_reply(query: &[u8]) -> Vec<u8> {
    let v6 = RData::AAAA(AAAA { address: Ipv6Addr::LOCALHOST.into() });
    let v4 = RData::A(A { address: Ipv4Addr::LOCALHOST.into() });
    let services = vec![record(NAME, srv(1, 7101, "N1.corp")), record(NAME, srv(2, 7102, "n2.corp"))];
    reply(query, services, vec![record("n1.corp", v4), record("N1.corp", v6)])
}

#[test]
fn the_bytes_of_a_question_are_these() {
    let bytes = query(0x0102, "a.b", Question::Service).unwrap();
    assert_eq!(bytes, *b"\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x21\x00\x01");
    assert!(matches!(query(1, &"a".repeat(64), Question::V4), Err(Unusable::Name(_))));
}

#[test]
fn services_and_the_addresses_of_their_hosts_are_read() {
    let asked = query(7, NAME, Question::Service).unwrap();
    let answer = read(&full_reply(&asked), 7, NAME, Question::Service).unwrap();
    let service = |priority, port, host: &str| Service { priority, weight: 5, port, host: host.into() };
    assert_eq!(answer.services, [service(1, 7101, "n1.corp"), service(2, 7102, "n2.corp")]);
    let host = || "n1.corp".to_owned();
    assert_eq!(answer.others, [(host(), Ipv4Addr::LOCALHOST.into()), (host(), Ipv6Addr::LOCALHOST.into())]);
}

#[test]
fn the_addresses_of_what_a_name_stands_for_are_its_own() {
    let asked = query(7, "n1", Question::V4).unwrap();
    let alias = RData::CNAME(CNAME(Name::new("n2").unwrap()));
    let answers = vec![record("n1", alias), record("n2", RData::A(A { address: Ipv4Addr::LOCALHOST.into() }))];
    let answer = read(&reply(&asked, answers, Vec::new()), 7, "n1", Question::V4).unwrap();
    assert_eq!(answer.addresses, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
}

#[test]
fn what_is_no_answer_says_so() {
    let asked = query(7, NAME, Question::Service).unwrap();
    let good = full_reply(&asked);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        read(&bytes, 7, NAME, Question::Service)
    };
    assert_eq!(with(3, 3), Err(Unusable::NotFound));
    assert_eq!(with(3, 2), Err(Unusable::Refused("ServerFailure".into())));
    assert_eq!(with(2, 0x82), Err(Unusable::Truncated));
    assert_eq!(with(2, 0), Err(Unusable::Foreign), "a question");
    assert_eq!(with(0, 1), Err(Unusable::Foreign), "another id");
    assert_eq!(read(&good, 7, "_x._udp.corp", Question::Service), Err(Unusable::Foreign));
    assert_eq!(read(&good, 7, NAME, Question::V4), Err(Unusable::Foreign));
    assert!(matches!(with(6, 0xff), Err(Unusable::Malformed(_))), "more records than fit");
    assert!(matches!(read(&good[..good.len() - 1], 7, NAME, Question::Service), Err(Unusable::Malformed(_))));
    assert_eq!(read(&[], 7, NAME, Question::Service), Err(Unusable::Foreign));
}

#[test]
fn garbage_is_an_error_and_never_more() {
    let asked = query(7, NAME, Question::Service).unwrap();
    let good = full_reply(&asked);
    let mut seed = 1u64;
    let mut random = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let mut read_well = 0;
    for _ in 0..50_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(4) {
            let (at, byte) = (random(bytes.len()), random(256) as u8);
            // The header stays most of the time: else nothing behind it is looked at.
            let at = if at < HEADER_BYTES && random(8) > 0 { bytes.len() - 1 - at } else { at };
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - random(3));
        read_well += usize::from(read(&bytes, 7, NAME, Question::Service).is_ok());
    }
    assert!(read_well > 100, "{read_well}: some changes do no harm");
}
