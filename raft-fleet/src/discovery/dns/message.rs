//! DNS messages (RFC 1035): a question, and what is of use of an answer. Whatever comes from the network is checked.

use std::net::IpAddr;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};

/// What is asked of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// SRV.
    Service,
    /// A.
    V4,
    /// AAAA.
    V6,
}

/// What is of use of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    pub(super) services: Vec<Service>,
    /// Of the name that was asked for, or of those that it stands for.
    pub(super) addresses: Vec<IpAddr>,
    /// Of other hosts, in case that they are asked for next.
    pub(super) others: Vec<(String, IpAddr)>,
}

/// An SRV record. Its host is in small letters; the empty one means that there is no such service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) host: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    /// There is no such name.
    #[error("there is no such name")]
    NotFound,
    /// It did not fit.
    #[error("the answer was cut off")]
    Truncated,
    /// It answers something else.
    #[error("the answer is to another question")]
    Foreign,
    /// The name cannot be put into a message.
    #[error("{0}")]
    Name(String),
    /// It is no message.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    /// The server says that it cannot answer.
    #[error("the server answers {0}")]
    Refused(String),
    /// The network.
    #[error("{0}")]
    Io(String),
}

impl From<std::io::Error> for Unusable {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// The smallest that a question and a record can be in a message.
const MIN_QUESTION_BYTES: usize = 5;
const MIN_RECORD_BYTES: usize = 11;
const HEADER_BYTES: usize = 12;
/// Bits of the header's third byte.
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;

impl Question {
    fn of(self) -> TYPE {
        match self {
            Self::Service => TYPE::SRV,
            Self::V4 => TYPE::A,
            Self::V6 => TYPE::AAAA,
        }
    }
}

pub(super) fn query(id: u16, name: &str, question: Question) -> Result<Vec<u8>, Unusable> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(simple_dns::Question::new(
        read_name(name)?,
        QTYPE::TYPE(question.of()),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet.build_bytes_vec().map_err(|error| Unusable::Name(error.to_string()))
}

fn read_name(name: &str) -> Result<Name<'_>, Unusable> {
    Name::new(name).map_err(|error| Unusable::Name(error.to_string()))
}

pub(super) fn read(bytes: &[u8], id: u16, name: &str, question: Question) -> Result<Answer, Unusable> {
    let header = bytes.get(..HEADER_BYTES).ok_or(Unusable::Foreign)?;
    if header[..2] != id.to_be_bytes() || header[2] & RESPONSE == 0 {
        return Err(Unusable::Foreign);
    }
    // Where it was cut, it may not be readable.
    if header[2] & TRUNCATED != 0 {
        return Err(Unusable::Truncated);
    }
    check_counts(header, bytes.len())?;
    let packet = Packet::parse(bytes).map_err(|error| Unusable::Malformed(error.to_string()))?;
    let expected = read_name(name)?;
    let is_asked = |asked: &simple_dns::Question<'_>| {
        asked.qname == expected && asked.qtype == QTYPE::TYPE(question.of()) && asked.qclass == QCLASS::CLASS(CLASS::IN)
    };
    let answers_this = packet.questions.len() == 1 && packet.questions.iter().all(is_asked);
    if !answers_this {
        return Err(Unusable::Foreign);
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Err(Unusable::NotFound),
        other => return Err(Unusable::Refused(format!("{other:?}"))),
    }
    let mut answer = Answer::default();
    for record in &packet.answers {
        match &record.rdata {
            RData::SRV(service) if question == Question::Service => answer.services.push(Service {
                priority: service.priority,
                weight: service.weight,
                port: service.port,
                host: service.target.to_string().to_ascii_lowercase(),
            }),
            _ => answer.addresses.extend(address(record)),
        }
    }
    let others = packet.additional_records.iter().filter_map(|record| Some((host(record), address(record)?)));
    answer.others = others.collect();
    Ok(answer)
}

fn host(record: &ResourceRecord<'_>) -> String {
    record.name.to_string().to_ascii_lowercase()
}

fn address(record: &ResourceRecord<'_>) -> Option<IpAddr> {
    match &record.rdata {
        RData::A(a) => Some(IpAddr::V4(a.address.into())),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.address.into())),
        _ => None,
    }
}

/// Memory is taken for as many records as the header says: no more than the bytes can hold.
fn check_counts(header: &[u8], given: usize) -> Result<(), Unusable> {
    let counts = header[4..].chunks_exact(2).map(|pair| usize::from(u16::from_be_bytes([pair[0], pair[1]])));
    let least =
        counts.enumerate().map(|(at, count)| count * if at == 0 { MIN_QUESTION_BYTES } else { MIN_RECORD_BYTES });
    let least = HEADER_BYTES + least.sum::<usize>();
    if given < least {
        return Err(Unusable::Malformed(format!("it has {given} bytes, and says that it holds at least {least}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
