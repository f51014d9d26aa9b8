//! Makes keys and certificates, and the files that hold them.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName};

use super::URI_SCHEME;
use crate::error::IdentityError;
use crate::name::NodeName;

/// What the CA's files are called.
const CA: &str = "ca";
/// How long a CA is valid.
const CA_YEARS: i32 = 30;
/// How long a node's certificate is valid.
const NODE_YEARS: i32 = 10;

/// Makes a CA in `dir`: `ca.pem` for every node, and `ca.key`, which stays here.
///
/// # Errors
/// When there is one, or a file cannot be made.
pub fn init_ca(dir: impl AsRef<Path>) -> Result<(), IdentityError> {
    let dir = dir.as_ref();
    create_dir(dir)?;
    for path in [ca_path(dir), ca_key_path(dir)] {
        if path.exists() {
            return Err(IdentityError::Exists { path });
        }
    }
    make_ca(dir)
}

/// Issues a certificate for the node `name` with the CA in `dir`: writes `NAME.pem`, and `NAME.key` where
/// there is none. `hosts` are further DNS names or addresses to put into it.
///
/// # Errors
/// When `name` or a host is none, the CA's key is missing, or a file cannot be made.
pub fn issue(dir: impl AsRef<Path>, name: &str, hosts: &[String]) -> Result<(), IdentityError> {
    let dir = dir.as_ref();
    make_node(dir, &NodeFiles::new(dir, &name.parse()?)?, hosts)
}

/// Where a node's files are.
pub(super) struct NodeFiles {
    pub(super) name: NodeName,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl NodeFiles {
    /// Refuses the name whose files would be the CA's, also where file names ignore case.
    pub(super) fn new(dir: &Path, name: &NodeName) -> Result<NodeFiles, IdentityError> {
        if name.as_str().eq_ignore_ascii_case(CA) {
            return Err(IdentityError::Reserved { name: name.clone() });
        }
        Ok(NodeFiles {
            name: name.clone(),
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        })
    }
}

pub(super) fn ca_path(dir: &Path) -> PathBuf {
    dir.join(format!("{CA}.pem"))
}

pub(super) fn ca_key_path(dir: &Path) -> PathBuf {
    dir.join(format!("{CA}.key"))
}

/// The key first: whoever finds it makes the certificate that follows from it.
pub(super) fn make_ca(dir: &Path) -> Result<(), IdentityError> {
    let key = make_key(&ca_key_path(dir))?;
    publish(&ca_path(dir), ca_certificate(&key)?.pem().as_bytes(), Replace::Never)
}

pub(super) fn make_node(dir: &Path, files: &NodeFiles, hosts: &[String]) -> Result<(), IdentityError> {
    let hint = "certificates are issued only where the CA's key is; copy NAME.pem and NAME.key from there";
    let ca_key = read_key(&ca_key_path(dir), hint)?;
    let key = make_key(&files.key)?;
    let certificate = node_certificate(&files.name, hosts, &key, &ca_key)?;
    publish(&files.certificate, certificate.pem().as_bytes(), Replace::Yes)
}

/// The key in `path`, made when there is none.
fn make_key(path: &Path) -> Result<KeyPair, IdentityError> {
    if !path.exists() {
        let key = KeyPair::generate().map_err(issue_error)?;
        publish(path, key.serialize_pem().as_bytes(), Replace::Never)?;
    }
    read_key(path, "it was there a moment ago")
}

fn ca_name(key: &KeyPair) -> DistinguishedName {
    let digest = digest::digest(&digest::SHA256, key.public_key_raw());
    let hex: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    // Two CAs never have one name, which would make rustls take one for the other.
    name.push(DnType::CommonName, format!("batched-comm CA {hex}"));
    name
}

fn ca_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(key);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_YEARS);
    params
}

pub(super) fn ca_certificate(key: &KeyPair) -> Result<rcgen::Certificate, IdentityError> {
    ca_params(key).self_signed(key).map_err(issue_error)
}

pub(super) fn node_certificate(
    name: &NodeName,
    hosts: &[String],
    key: &KeyPair,
    ca_key: &KeyPair,
) -> Result<rcgen::Certificate, IdentityError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name.as_str());
    params.distinguished_name = subject;
    let uri = format!("{URI_SCHEME}{name}").try_into().map_err(issue_error)?;
    params.subject_alt_names.push(SanType::URI(uri));
    let own_name = DnsName::try_from(name.as_str()).is_ok().then(|| name.to_string());
    for host in own_name.iter().chain(hosts) {
        let entry = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if DnsName::try_from(host.as_str()).is_ok() => {
                SanType::DnsName(host.as_str().try_into().map_err(issue_error)?)
            }
            Err(_) => {
                let reason = format!("{host:?} is neither a host's name nor an address");
                return Err(IdentityError::Issue { reason });
            }
        };
        params.subject_alt_names.push(entry);
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, NODE_YEARS);
    let ca = ca_params(ca_key);
    params.signed_by(key, &Issuer::from_params(&ca, ca_key)).map_err(issue_error)
}

/// From last year on, so that clocks may differ.
fn valid_for(params: &mut CertificateParams, years: i32) {
    const SECONDS_PER_YEAR: u64 = 31_556_952;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let year = 1970 + (since_1970.as_secs() / SECONDS_PER_YEAR) as i32;
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + years, 1, 1);
}

pub(super) fn read(path: &Path, hint: &'static str) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => IdentityError::Missing { path: path.to_owned(), hint },
        _ => IdentityError::File { action: "read", path: path.to_owned(), source },
    })
}

/// Reads a key, which nobody but its owner can read: as OpenSSH has it. One that root owns may be readable by a
/// group, by which a service gets a key that it cannot change.
pub(super) fn read_secret(path: &Path, hint: &'static str) -> Result<Vec<u8>, IdentityError> {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        let mode = metadata.mode() & 0o777;
        if mode & others != 0 {
            return Err(IdentityError::Permissions { path: path.to_owned(), mode });
        }
    }
    read(path, hint)
}

pub(super) fn read_certificates(
    path: &Path,
    hint: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let content = |reason| IdentityError::Content { path: path.to_owned(), what: "certificate", reason };
    let pem = read(path, hint)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| content(error.to_string()))?;
    if found.is_empty() { Err(content("there is none in it".into())) } else { Ok(found) }
}

fn read_key(path: &Path, hint: &'static str) -> Result<KeyPair, IdentityError> {
    let content = |reason| IdentityError::Content { path: path.to_owned(), what: "private key", reason };
    let pem = String::from_utf8(read_secret(path, hint)?).map_err(|error| content(error.to_string()))?;
    KeyPair::from_pem(&pem).map_err(|error| content(error.to_string()))
}

/// What becomes of a file that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
    Yes,
    Never,
}

/// Makes the file appear whole, under its name, at once. With `Replace::Never` the first one to do so
/// wins, and the others' content is dropped.
pub(super) fn publish(path: &Path, content: &[u8], replace: Replace) -> Result<(), IdentityError> {
    let failed = |action, source| IdentityError::File { action, path: path.to_owned(), source };
    let draft = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let secret = path.extension().is_some_and(|extension| extension == "key");
    let written = write_file(&draft, content, secret).map_err(|source| failed("write", source));
    let published = written.and_then(|()| match replace {
        Replace::Yes => fs::rename(&draft, path).map_err(|source| failed("create", source)),
        Replace::Never => match fs::hard_link(&draft, path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", source)),
            _ => Ok(()),
        },
    });
    // Gone already after a rename.
    let _ = fs::remove_file(&draft);
    published
}

/// Writes a file, which nobody else can read when it is `secret`, and syncs it.
fn write_file(path: &Path, content: &[u8], secret: bool) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if secret { 0o600 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = secret;
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

pub(super) fn create_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::create_dir_all(dir).map_err(|source| IdentityError::File { action: "create", path: dir.to_owned(), source })
}

pub(super) fn issue_error(error: rcgen::Error) -> IdentityError {
    IdentityError::Issue { reason: error.to_string() }
}
