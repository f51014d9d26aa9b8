//! Where a node finds others that know its cluster: a trait, a list, and a file.
//!
//! ```text
//! list  "10.0.0.1:7101"  an address        --as it is--------------------------> address
//! file  "db1:7101"       a host            --what the system knows of it-------> addresses
//!       "_db._udp.corp"  a service (SRV)   --DNS: hosts and ports, then hosts--> addresses
//! ```
//!
//! Nothing is kept from one look to the next: who asks again sees what has changed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;

mod file;
mod dns;
mod seed;

pub use self::dns::DnsError;
pub use self::file::SeedFile;
pub use self::seed::{Seed, SeedError};

use self::dns::Dns;

/// Seeds that are used; more are left out, and told of.
pub const MAX_SEEDS: usize = 256;
/// How long one name may take.
const NAME_PATIENCE: Duration = Duration::from_secs(4);

/// A look for seeds on its way.
pub type Finding<'a> = Pin<Box<dyn Future<Output = Found> + Send + 'a>>;

/// Finds seeds: nodes that know the cluster.
///
/// ```
/// use raft_fleet::{Discovery, Finding, Found};
///
/// struct FromInventory;
///
/// impl Discovery for FromInventory {
///     fn find(&self) -> Finding<'_> {
///         Box::pin(async { Found { seeds: vec![([10, 0, 0, 1], 7101).into()], problems: Vec::new() } })
///     }
/// }
/// ```
pub trait Discovery: Send + Sync + 'static {
    /// Looks once. It is asked on every try of a node that looks for its cluster, though not more often than once a second,
    /// and given up after ten seconds. What does not work is told in the answer, beside what does.
    fn find(&self) -> Finding<'_>;
}

/// What a look for seeds has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Where other nodes may be; this node's own address may be among them.
    pub seeds: Vec<SocketAddr>,
    /// What did not work.
    pub problems: Vec<DiscoveryError>,
}

/// Why a look found less than it should have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The file cannot be read.
    #[error("the seeds' file {} cannot be read: {reason}; make it readable for this process", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is too long.
    #[error("the seeds' file {} has more than {max_bytes} bytes; list some nodes, not all", path.display())]
    FileTooLong {
        /// Which.
        path: PathBuf,
        /// How long it may be.
        max_bytes: u64,
    },
    /// A line of the file is none. The others count.
    #[error("{}:{line}: {error}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line of it, from 1.
        line: usize,
        /// What is wrong.
        error: SeedError,
    },
    /// The system knows no such host.
    #[error("the seed {host} has no address: {reason}; correct the name, or what is known of it")]
    Host {
        /// Which.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// DNS knows no such service.
    #[error("the service {service}: {error}")]
    Service {
        /// Which.
        service: String,
        /// Why.
        error: DnsError,
    },
    /// Names are looked up within a bound.
    #[error("{what} did not answer within {after:?}; see whether the name servers work")]
    TooSlow {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// There are more seeds than are used.
    #[error("{found} seeds were found, and {used} are used; a few are enough")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many are used.
        used: usize,
    },
    /// What a discovery of one's own says.
    #[error("{0}")]
    Other(String),
}

/// Seeds by address, host or service. Names are looked up at every look, and all their addresses are seeds.
#[derive(Debug, Clone)]
pub struct SeedList {
    seeds: Vec<Seed>,
    dns: Dns,
}

impl SeedList {
    /// These seeds.
    pub fn new(seeds: impl IntoIterator<Item = Seed>) -> Self {
        Self { seeds: seeds.into_iter().collect(), dns: Dns::default() }
    }

    /// Asks these name servers for services, instead of those that the system has.
    pub fn with_name_servers(self, servers: Vec<SocketAddr>) -> Self {
        Self { dns: Dns::at(servers), ..self }
    }
}

impl Discovery for SeedList {
    fn find(&self) -> Finding<'_> {
        Box::pin(look_up(&self.seeds, &self.dns))
    }
}

impl<D: Discovery + ?Sized> Discovery for std::sync::Arc<D> {
    fn find(&self) -> Finding<'_> {
        (**self).find()
    }
}

impl Found {
    /// What all of them have found: of each address the first, and no more than are used.
    pub(crate) fn of_all(looks: Vec<Self>) -> Self {
        let mut all = Self::default();
        for look in looks {
            for seed in look.seeds {
                if !all.seeds.contains(&seed) {
                    all.seeds.push(seed);
                }
            }
            all.problems.extend(look.problems);
        }
        all.problems.extend(too_many(all.seeds.len()));
        all.seeds.truncate(MAX_SEEDS);
        all
    }
}

fn too_many(found: usize) -> Option<DiscoveryError> {
    (found > MAX_SEEDS).then_some(DiscoveryError::TooMany { found, used: MAX_SEEDS })
}

/// The addresses of all, in their order.
async fn look_up(seeds: &[Seed], dns: &Dns) -> Found {
    let used = seeds.iter().take(MAX_SEEDS);
    let mut found = Found::of_all(join_all(used.map(|seed| look_up_one(seed, dns))).await);
    found.problems.extend(too_many(seeds.len()));
    found
}

async fn look_up_one(seed: &Seed, dns: &Dns) -> Found {
    let look = async {
        match seed {
            Seed::Address(address) => Ok(vec![*address]),
            Seed::Host { host, port } => match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(addresses) => Ok(addresses.collect()),
                Err(error) => Err(DiscoveryError::Host { host: host.clone(), reason: error.to_string() }),
            },
            Seed::Service(service) => {
                let found = dns.service(service).await;
                found.map_err(|error| DiscoveryError::Service { service: service.clone(), error })
            }
        }
    };
    let too_slow = || DiscoveryError::TooSlow { what: seed.to_string(), after: NAME_PATIENCE };
    match tokio::time::timeout(NAME_PATIENCE, look).await.unwrap_or_else(|_| Err(too_slow())) {
        Ok(seeds) => Found { seeds, problems: Vec::new() },
        Err(problem) => Found { seeds: Vec::new(), problems: vec![problem] },
    }
}

#[cfg(test)]
mod tests;
