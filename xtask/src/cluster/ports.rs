//! Ports on loopback: given ones are checked, free ones are picked.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, Result, bail};

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of the other nodes, over QUIC.
    pub listen: SocketAddr,
    /// Of clients, over HTTP.
    pub http: SocketAddr,
}

/// Addresses for `count` nodes. `None` picks free ports; `Some(first)` takes that one and those after it.
pub fn addresses(count: usize, listen: Option<u16>, http: Option<u16>) -> Result<Vec<Addresses>> {
    // All are held until all are known, so that none is picked twice.
    let mut held = (Vec::new(), Vec::new());
    let mut addresses = Vec::new();
    for index in 0..count {
        let socket = UdpSocket::bind(address(listen, index)?);
        let socket = socket.with_context(|| in_use("--base-port", "UDP", listen, index))?;
        let listener = TcpListener::bind(address(http, index)?);
        let listener = listener.with_context(|| in_use("--http-port", "TCP", http, index))?;
        addresses.push(Addresses { listen: socket.local_addr()?, http: listener.local_addr()? });
        held.0.push(socket);
        held.1.push(listener);
    }
    Ok(addresses)
}

fn address(first: Option<u16>, index: usize) -> Result<SocketAddr> {
    let port = match first {
        None => 0,
        Some(first) => match u16::try_from(index).ok().and_then(|index| first.checked_add(index)) {
            Some(port) => port,
            None => {
                bail!("port {first} and the {index} after it go beyond 65535: take a lower one")
            }
        },
    };
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

fn in_use(flag: &str, protocol: &str, first: Option<u16>, index: usize) -> String {
    match first {
        None => format!("there is no free {protocol} port on 127.0.0.1"),
        Some(first) => format!(
            "{protocol} port {} on 127.0.0.1 cannot be used for node n{}: stop what uses it, or take other ports \
             with {flag} PORT ({flag} 0 picks free ones)",
            usize::from(first) + index,
            index + 1
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ() {
        let picked = addresses(20, None, None).unwrap();
        let mut ports: Vec<u16> = picked.iter().map(|one| one.listen.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = addresses(1, None, Some(port)).unwrap_err().to_string();
        assert!(error.contains(&format!("TCP port {port}")), "{error}");
        assert!(error.contains("--http-port 0"), "{error}");
        let error = addresses(2, Some(65_535), None).unwrap_err().to_string();
        assert!(error.contains("65535"), "{error}");
    }
}
