//! Seeds from a file that is read again at every look.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{Discovery, DiscoveryError, Dns, Finding, Found, Seed};

/// The longest file.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Lines that are told of, when so many are wrong.
const MAX_TOLD_LINES: usize = 16;

/// A file with a [`Seed`] on each line. What stands behind a `#` is a comment; empty lines are left out. It is read
/// again at every look, so that it may be edited while nodes run; a line that is no seed is told with its number, and
/// the others count.
#[derive(Debug, Clone)]
pub struct SeedFile {
    path: PathBuf,
    dns: Dns,
}

impl SeedFile {
    /// This file. It need not be there yet.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), dns: Dns::default() }
    }

    /// Asks these name servers for services, instead of those that the system has.
    pub fn with_name_servers(self, servers: Vec<SocketAddr>) -> Self {
        Self { dns: Dns::at(servers), ..self }
    }

    async fn look(&self) -> Found {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
        let bytes = match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(bytes) if bytes.len() as u64 > MAX_FILE_BYTES => {
                let problem = DiscoveryError::FileTooLong { path: self.path.clone(), max_bytes: MAX_FILE_BYTES };
                return Found { seeds: Vec::new(), problems: vec![problem] };
            }
            Ok(bytes) => bytes,
            Err(error) => {
                let problem = DiscoveryError::File { path: self.path.clone(), reason: error.to_string() };
                return Found { seeds: Vec::new(), problems: vec![problem] };
            }
        };
        let (seeds, problems) = read_lines(&self.path, &String::from_utf8_lossy(&bytes));
        let mut found = super::look_up(&seeds, &self.dns).await;
        found.problems.splice(0..0, problems);
        found
    }
}

impl Discovery for SeedFile {
    fn find(&self) -> Finding<'_> {
        Box::pin(self.look())
    }
}

/// One byte more than is allowed, if there are more.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_lines(path: &Path, text: &str) -> (Vec<Seed>, Vec<DiscoveryError>) {
    let (mut seeds, mut problems) = (Vec::new(), Vec::new());
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match line.parse() {
            Ok(seed) => seeds.push(seed),
            Err(error) if problems.len() < MAX_TOLD_LINES => {
                problems.push(DiscoveryError::Line { path: path.to_owned(), line: at + 1, error });
            }
            Err(_) => {}
        }
    }
    (seeds, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[tokio::test]
    async fn an_edited_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        let file = SeedFile::new(&path);
        let missing = file.find().await;
        assert!(matches!(&missing.problems[..], [DiscoveryError::File { .. }]), "{missing:?}");
        std::fs::write(&path, "127.0.0.1:1\n").unwrap();
        let first = Found { seeds: vec![at(1)], problems: Vec::new() };
        assert_eq!(file.find().await, first);
        std::fs::write(&path, "\u{feff}# ours\r\n\r\n 127.0.0.1:2 # the second\r\n127.0.0.1:3\n127.0.0.1:2").unwrap();
        let second = vec![at(2), at(3)];
        assert_eq!(file.find().await, Found { seeds: second, problems: Vec::new() });
    }

    #[tokio::test]
    async fn a_broken_line_is_told_with_its_number_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        std::fs::write(&path, b"127.0.0.1:1\nnonsense\n\xff\xfe:1\n127.0.0.1:2\n").unwrap();
        let found = SeedFile::new(&path).find().await;
        assert_eq!(found.seeds, vec![at(1), at(2)]);
        let told: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("seeds:2: \"nonsense\" is no seed: there is no port"), "{told:?}");
        assert!(told[1].contains("seeds:3: "), "{told:?}");
    }

    #[tokio::test]
    async fn a_long_file_and_a_folder_are_problems() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        std::fs::write(&path, "127.0.0.1:1\n".repeat(6_000)).unwrap();
        let long = SeedFile::new(&path).find().await;
        assert!(matches!(&long.problems[..], [DiscoveryError::FileTooLong { .. }]), "{long:?}");
        let folder = SeedFile::new(dir.path()).find().await;
        assert!(matches!(&folder.problems[..], [DiscoveryError::File { .. }]), "{folder:?}");
        let broken = "broken\n".repeat(1_000);
        assert_eq!(read_lines(&path, &broken).1.len(), MAX_TOLD_LINES);
    }
}
