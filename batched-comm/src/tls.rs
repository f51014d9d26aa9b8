//! Certificates, and mutual TLS from them.
//!
//! A directory holds `ca.pem`, the CA's certificate; `ca.key`, its key, only where certificates are
//! issued; and per node `NAME.pem` and `NAME.key`. Keys are made readable by their owner alone, and are not
//! used when others can read them.
//!
//! A node's name stands in its certificate as the URI `node:NAME`, because not every NodeName is a DNS
//! name. TLS itself checks that a certificate is by the CA and valid now; the name is read from it and
//! compared on both sides, against the name that was dialled and against the name in the hello.
//!
//! Everything that is made here appears under its name in one step and never replaces a key, so any
//! number of processes may start in an empty directory at once: they end up with one CA. The CA's name
//! follows from its key, so two processes that write its certificate write the same trust anchor.

mod rotation;
mod issue;

use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::KeyPair;
use ring::{hkdf, hmac};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::chance::Chance;
use crate::error::{BindError, IdentityError};
use crate::name::NodeName;
use issue::{
    NodeFiles, ca_certificate, ca_key_path, ca_path, create_dir, issue_error, make_ca, make_node, node_certificate,
    read_certificates, read_secret,
};

pub use issue::{init_ca, issue};
pub use rotation::{distrust, trust};

/// What stands before the name in a certificate's URI.
const URI_SCHEME: &str = "node:";
/// Who speaks anything else over QUIC is turned away in the handshake.
const PROTOCOL: &[u8] = b"batched-comm/1";

/// Who a node is, and whom it trusts: its certificate and key, and the CA's certificates.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    name: NodeName,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.inner.name)
    }
}

impl Identity {
    /// For development: makes in `dir` what is missing of CA, certificate and key. Safe when many
    /// processes start at once.
    ///
    /// # Errors
    /// When `name` is no name, a file cannot be made, or a certificate is there without its CA's key.
    pub fn dev(dir: impl AsRef<Path>, name: &str) -> Result<Identity, IdentityError> {
        let dir = dir.as_ref();
        let files = NodeFiles::new(dir, &name.parse()?)?;
        if !(files.certificate.exists() && files.key.exists() && ca_path(dir).exists()) {
            create_dir(dir)?;
            // A CA whose key is elsewhere is left alone, and the next step says what is missing.
            if !ca_path(dir).exists() || ca_key_path(dir).exists() {
                make_ca(dir)?;
            }
            make_node(dir, &files, &[])?;
        }
        Self::load(dir, name)
    }

    /// Reads `ca.pem`, `NAME.pem` and `NAME.key` from `dir`. `ca.pem` may hold several CAs.
    ///
    /// # Errors
    /// When a file is missing, is not what its name says, or does not belong to the others.
    pub fn load(dir: impl AsRef<Path>, name: &str) -> Result<Identity, IdentityError> {
        let dir = dir.as_ref();
        let files = NodeFiles::new(dir, &name.parse()?)?;
        let hint = "make a CA with init_ca, and the node's certificate with issue";
        let roots = read_certificates(&ca_path(dir), hint)?;
        let chain = read_certificates(&files.certificate, hint)?;
        let key_pem = read_secret(&files.key, hint)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| IdentityError::Content {
            path: files.key.clone(),
            what: "private key",
            reason: error.to_string(),
        })?;
        Self::new(files.name, chain, key, roots, &files.certificate)
    }

    /// A CA that lives in memory and issues identities: for tests.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn in_memory_ca() -> Result<MemoryCa, IdentityError> {
        let key = KeyPair::generate().map_err(issue_error)?;
        let certificate = ca_certificate(&key)?.der().clone();
        Ok(MemoryCa { key, certificate })
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.inner.name
    }

    fn new(
        name: NodeName,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        certificates: Vec<CertificateDer<'static>>,
        path: &Path,
    ) -> Result<Identity, IdentityError> {
        let content = |reason: String| IdentityError::Content { path: path.to_owned(), what: "certificate", reason };
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|error| content(error.to_string()))?;
        }
        let (first, rest) = chain.split_first().ok_or_else(|| content("it is empty".into()))?;
        let found = names_in(first);
        if !found.contains(&name) {
            let found = found.iter().map(NodeName::to_string).collect();
            return Err(IdentityError::OtherName { path: path.to_owned(), found, expected: name });
        }
        verify_chain(first, rest, &roots, UnixTime::now())
            .map_err(|error| IdentityError::NotIssued { name: name.clone(), reason: error.to_string() })?;
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(|error| content(format!("it does not fit its key: {error}")))?;
        let inner = Inner { name, chain, key, roots: Arc::new(roots) };
        Ok(Identity { inner: Arc::new(inner) })
    }

    /// What this node says as a server: who has no certificate by the CA is turned away.
    pub(crate) fn server_config(&self) -> Result<quinn::ServerConfig, BindError> {
        let provider = provider();
        let roots = self.inner.roots.clone();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().map_err(tls_error)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.inner.chain.clone(), self.inner.key.clone_key())
            .map_err(tls_error)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // No resumption: a resumed session is not judged by its certificate again.
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let config = QuicServerConfig::try_from(config).map_err(tls_error)?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(config)))
    }

    /// What this node says as a client.
    pub(crate) fn client_config(&self) -> Result<quinn::ClientConfig, BindError> {
        let provider = provider();
        let verifier = AnyNodeOfTheCa { roots: self.inner.roots.clone(), provider: provider.clone() };
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.inner.chain.clone(), self.inner.key.clone_key())
            .map_err(tls_error)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        let config = QuicClientConfig::try_from(config).map_err(tls_error)?;
        Ok(quinn::ClientConfig::new(Arc::new(config)))
    }

    /// How quinn makes connection ids and reset tokens. Both follow from the node's key, so that a
    /// restarted node answers packets of its former connections with resets that the peers believe.
    pub(crate) fn quic_config(&self, chance: &Arc<Chance>, max_datagram_bytes: u16) -> quinn::EndpointConfig {
        let id_key = self.key_for(b"connection ids");
        let mut config = quinn::EndpointConfig::new(Arc::new(self.reset_key()));
        // Its range begins at 1,200.
        let _ = config.max_udp_payload_size(max_datagram_bytes);
        config.rng_seed(chance.seed());
        let chance = chance.clone();
        config.cid_generator(move || Box::new(OwnConnectionIds { key: id_key.clone(), chance: chance.clone() }));
        config
    }

    /// What signs a connection's id, so that the signature resets it.
    pub(crate) fn reset_key(&self) -> hmac::Key {
        self.key_for(b"stateless reset")
    }

    fn key_for(&self, label: &'static [u8]) -> hmac::Key {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"batched-comm reset v1");
        let secret = salt.extract(self.inner.key.secret_der());
        hmac::Key::new(hmac::HMAC_SHA256, &derive(&secret, label))
    }
}

/// A CA in memory, for tests.
pub struct MemoryCa {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl MemoryCa {
    /// The identity of a node called `name`.
    ///
    /// # Errors
    /// When `name` is no name, or no key can be made.
    pub fn issue(&self, name: &str) -> Result<Identity, IdentityError> {
        let name: NodeName = name.parse()?;
        let key = KeyPair::generate().map_err(issue_error)?;
        let certificate = node_certificate(&name, &[], &key, &self.key)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let roots = vec![self.certificate.clone()];
        Identity::new(name, vec![certificate.der().clone()], key, roots, Path::new("memory"))
    }
}

/// The names in the certificate by which the other side of `connection` has proved itself.
pub(crate) fn peer_names(connection: &quinn::Connection) -> Vec<NodeName> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.and_then(|chain| chain.first().map(names_in)).unwrap_or_default()
}

/// The nodes' names in a certificate.
fn names_in(certificate: &CertificateDer<'_>) -> Vec<NodeName> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(URI_SCHEME)?.parse().ok()).collect()
}

/// Accepts every certificate by the CA; the caller reads the name from it and compares.
#[derive(Debug)]
struct AnyNodeOfTheCa {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyNodeOfTheCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_chain(end_entity, intermediates, &self.roots, now)?;
        if names_in(end_entity).is_empty() {
            return Err(rustls::Error::General("the certificate has no node's name".into()));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Connection ids that a node knows for its own, also those of its former starts: random bytes and a tag.
///
/// quinn's own generator takes a new key at each start; ids of former starts are noise to it, and it
/// answers noise with silence instead of a reset.
struct OwnConnectionIds {
    key: hmac::Key,
    chance: Arc<Chance>,
}

const ID_RANDOM_BYTES: usize = 6;
const ID_TAG_BYTES: usize = 6;
/// The length of every connection's id.
pub(crate) const CONNECTION_ID_BYTES: usize = ID_RANDOM_BYTES + ID_TAG_BYTES;

impl OwnConnectionIds {
    fn id(&self, random: &[u8]) -> [u8; CONNECTION_ID_BYTES] {
        let mut id = [0; CONNECTION_ID_BYTES];
        id[..ID_RANDOM_BYTES].copy_from_slice(random);
        let tag = hmac::sign(&self.key, random);
        id[ID_RANDOM_BYTES..].copy_from_slice(&tag.as_ref()[..ID_TAG_BYTES]);
        id
    }
}

impl quinn::ConnectionIdGenerator for OwnConnectionIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&self.id(&self.chance.bytes::<ID_RANDOM_BYTES>()))
    }

    fn validate(&self, id: &quinn::ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        let known = id.len() == self.cid_len() && self.id(&id[..ID_RANDOM_BYTES])[..] == id[..];
        known.then_some(()).ok_or(quinn_proto::InvalidCid)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

fn verify_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = provider().signature_verification_algorithms;
    let certificate = ParsedCertificate::try_from(end_entity)?;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms.all)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn derive(secret: &hkdf::Prk, label: &'static [u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let info = [label];
    // Neither fails: 32 bytes are what HKDF-SHA256 gives at least.
    if let Ok(okm) = secret.expand(&info, hkdf::HKDF_SHA256) {
        let _ = okm.fill(&mut out);
    }
    out
}

fn tls_error(error: impl std::fmt::Display) -> BindError {
    BindError::Tls { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_that_are_no_dns_names_are_found_in_certificates() {
        let ca = Identity::in_memory_ca().unwrap();
        for name in ["n1", "node_1", "_", "n1.example.com", "A-b.c_d"] {
            let identity = ca.issue(name).unwrap();
            let names: Vec<_> = names_in(&identity.inner.chain[0]);
            assert_eq!(names, [name.parse().unwrap()]);
        }
    }

    #[test]
    fn many_that_start_at_once_share_one_ca() {
        let dir = tempfile::tempdir().unwrap();
        let identities: Vec<Identity> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12)
                .map(|n| {
                    let dir = dir.path();
                    scope.spawn(move || Identity::dev(dir, &format!("n{}", n / 2)).unwrap())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let roots = &identities[0].inner.roots;
        for identity in &identities {
            verify_chain(&identity.inner.chain[0], &[], roots, UnixTime::now()).unwrap();
        }
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".tmp"))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Identity::dev(dir.path(), "n1").unwrap();
        for key in ["ca.key", "n1.key"] {
            let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Identity::dev(dir.path(), "n1").unwrap();
        let set = |file: &str, mode| {
            fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o644, 0o604, 0o660, 0o777] {
            set("n1.key", mode);
            let error = Identity::load(dir.path(), "n1").unwrap_err();
            assert!(matches!(error, IdentityError::Permissions { mode: given, .. } if given == mode), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        set("n1.key", 0o400);
        Identity::load(dir.path(), "n1").unwrap();
        set("ca.key", 0o644);
        let error = issue(dir.path(), "n2", &[]).unwrap_err();
        assert!(matches!(error, IdentityError::Permissions { .. }), "{error}");
    }

    /// rustls takes two CAs of one name for one.
    #[test]
    fn two_cas_never_have_one_name() {
        let subjects = [0; 2].map(|_| {
            let ca = Identity::in_memory_ca().unwrap();
            webpki::anchor_from_trusted_cert(&ca.certificate).unwrap().subject.as_ref().to_vec()
        });
        assert_ne!(subjects[0], subjects[1]);
    }

    #[test]
    fn a_node_never_has_the_files_of_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        init_ca(dir.path()).unwrap();
        let before = fs::read(dir.path().join("ca.pem")).unwrap();
        for name in ["ca", "CA"] {
            for refused in [issue(dir.path(), name, &[]).err(), Identity::dev(dir.path(), name).err()] {
                assert!(matches!(refused, Some(IdentityError::Reserved { .. })), "{refused:?}");
            }
        }
        assert_eq!(fs::read(dir.path().join("ca.pem")).unwrap(), before);
    }

    #[test]
    fn what_is_wrong_with_files_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = Identity::load(dir.path(), "n1").unwrap_err();
        assert!(matches!(error, IdentityError::Missing { .. }), "{error}");
        init_ca(dir.path()).unwrap();
        assert!(matches!(init_ca(dir.path()), Err(IdentityError::Exists { .. })));
        issue(dir.path(), "n1", &["localhost".into(), "::1".into()]).unwrap();
        assert_eq!(Identity::load(dir.path(), "n1").unwrap().name().as_str(), "n1");
        let bad_host = issue(dir.path(), "n1", &["not a host".into()]);
        assert!(matches!(bad_host, Err(IdentityError::Issue { .. })));
        for file in ["n1.pem", "n1.key"] {
            fs::copy(dir.path().join(file), dir.path().join(file.replace("n1", "n2"))).unwrap();
        }
        let error = Identity::load(dir.path(), "n2").unwrap_err();
        assert!(matches!(error, IdentityError::OtherName { .. }), "{error}");
        let other = tempfile::tempdir().unwrap();
        init_ca(other.path()).unwrap();
        fs::copy(other.path().join("ca.pem"), dir.path().join("ca.pem")).unwrap();
        let error = Identity::load(dir.path(), "n1").unwrap_err();
        assert!(matches!(error, IdentityError::NotIssued { .. }), "{error}");
        fs::write(dir.path().join("n1.pem"), "nonsense").unwrap();
        let error = Identity::load(dir.path(), "n1").unwrap_err();
        assert!(matches!(error, IdentityError::Content { .. }), "{error}");
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = Identity::dev(dir.path(), "n3").unwrap_err();
        assert!(matches!(error, IdentityError::Missing { .. }), "{error}");
    }
}
