//! One seed as a person writes it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The longest name that DNS has.
const MAX_NAME_BYTES: usize = 253;
/// The longest part of one.
const MAX_LABEL_BYTES: usize = 63;
/// How much of what was given an error repeats.
const MAX_TOLD_BYTES: usize = 80;

/// A node that knows the cluster, or a name for some.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Seed {
    /// `10.0.0.1:7101`, `[::1]:7101`.
    Address(SocketAddr),
    /// `db1.example.org:7101`: all addresses that the system knows of the host.
    Host {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// `_db._udp.example.org`: the hosts and ports of the service's SRV records (RFC 2782), in their order. The name is
    /// a whole one; no search domain is put behind it.
    Service(String),
}

/// Why a text is no seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no seed: {reason}; give ADDRESS:PORT, HOST:PORT, or a service as _NAME._PROTOCOL.DOMAIN")]
pub struct SeedError {
    /// What was given, cut where it is long.
    pub given: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl From<SocketAddr> for Seed {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(given: &str) -> Result<Self, SeedError> {
        read(given).map_err(|reason| SeedError { given: cut(given), reason })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

fn read(given: &str) -> Result<Seed, &'static str> {
    if let Ok(address) = given.parse::<SocketAddr>() {
        check_port(address.port())?;
        return Ok(Seed::Address(address));
    }
    if given.starts_with('_') {
        let name = check_name(given)?;
        let labels: Vec<&str> = name.split('.').collect();
        if labels.len() < 3 || !labels[1].starts_with('_') || labels[2].starts_with('_') {
            return Err("a service's name begins with two parts that begin with _, and a domain follows");
        }
        return Ok(Seed::Service(name.to_owned()));
    }
    let (host, port) = given.rsplit_once(':').ok_or("there is no port")?;
    let port = port.parse().map_err(|_| "the port is no number up to 65535")?;
    check_port(port)?;
    if host.contains([':', '[']) {
        return Err("this is no IPv6 address in brackets");
    }
    let host = check_name(host)?;
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.chars().all(|character| character.is_ascii_digit()) {
        return Err("this is neither an IPv4 address nor a name");
    }
    Ok(Seed::Host { host: host.to_owned(), port })
}

fn check_port(port: u16) -> Result<(), &'static str> {
    if port == 0 { Err("nobody is reached at port 0") } else { Ok(()) }
}

/// The name without the dot that may end it.
fn check_name(given: &str) -> Result<&str, &'static str> {
    let name = given.strip_suffix('.').unwrap_or(given);
    if name.is_empty() {
        return Err("there is no name");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("the name is longer than 253 bytes");
    }
    let is_label = |label: &str| {
        let are_known = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        !label.is_empty() && label.len() <= MAX_LABEL_BYTES && are_known
    };
    if !name.split('.').all(is_label) {
        return Err("each part of a name is 1 to 63 of A-Z a-z 0-9 - _");
    }
    Ok(name)
}

fn cut(given: &str) -> String {
    if given.len() <= MAX_TOLD_BYTES {
        return given.to_owned();
    }
    let end = (0..=MAX_TOLD_BYTES).rev().find(|&end| given.is_char_boundary(end)).unwrap_or_default();
    format!("{}...", &given[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_addresses_hosts_and_services() {
        let host = |host: &str, port| Seed::Host { host: host.into(), port };
        let table = [
            ("10.0.0.1:7101", Seed::Address(([10, 0, 0, 1], 7101).into())),
            ("[::1]:7101", Seed::Address("[::1]:7101".parse().unwrap())),
            ("db1:7101", host("db1", 7101)),
            ("db-1.example.org.:1", host("db-1.example.org", 1)),
            ("db_1:65535", host("db_1", 65_535)),
            ("_db._udp.example.org", Seed::Service("_db._udp.example.org".into())),
            ("_db._udp.local.", Seed::Service("_db._udp.local".into())),
        ];
        for (text, seed) in table {
            let read: Seed = text.parse().unwrap();
            assert_eq!(read, seed, "{text}");
            assert_eq!(read.to_string().parse::<Seed>().unwrap(), seed, "{text}");
        }
    }

    #[test]
    fn what_is_no_seed_is_told() {
        let long = format!("{}:1", "a".repeat(64));
        let longer = format!("{}a:1", "abc.".repeat(70));
        let table = [
            ("", "no port"),
            ("db1", "no port"),
            ("db1:", "no number"),
            ("db1:65536", "no number"),
            ("db1:-1", "no number"),
            ("db1:0", "port 0"),
            ("10.0.0.1:0", "port 0"),
            (":7101", "no name"),
            ("::1:7101", "in brackets"),
            ("[::1:7101", "in brackets"),
            ("256.0.0.1:7101", "neither"),
            ("10.1:7101", "neither"),
            ("a b:1", "each part"),
            ("a..b:1", "each part"),
            ("ü:1", "each part"),
            (&long, "each part"),
            (&longer, "253"),
            ("_db", "two parts"),
            ("_db._udp", "two parts"),
            ("_db.udp.example.org", "two parts"),
            ("_._udp._x", "two parts"),
            ("_db._udp.example.org:7101", "each part"),
        ];
        for (text, reason) in table {
            let error = text.parse::<Seed>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(error.len() < 300, "{error}");
        }
        assert!("ü".repeat(100).parse::<Seed>().unwrap_err().given.ends_with("..."), "cut between characters");
    }
}
