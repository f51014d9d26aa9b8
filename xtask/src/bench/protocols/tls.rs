//! The same certificates for all protocols: one CA, a certificate for each side, checked on both.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::Role;

/// The name in the certificate of a role.
pub fn name(role: Role) -> &'static str {
    match role {
        Role::Server => "server",
        Role::Client => "client",
    }
}

/// Makes the CA and the certificates of both sides, and of nodes of these names.
pub fn make(folder: &Path, nodes: &[&str]) -> Result<()> {
    batched_comm::tls::init_ca(folder)?;
    for name in [name(Role::Server), name(Role::Client)].iter().chain(nodes) {
        batched_comm::tls::issue(folder, name, &[])?;
    }
    Ok(())
}

pub fn read(folder: &Path, file: &str) -> Result<Vec<u8>> {
    let path = folder.join(file);
    std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))
}

fn roots(folder: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read(folder, "ca.pem")?) {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(roots))
}

fn own(folder: &Path, role: Role) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let name = name(role);
    let chain = CertificateDer::pem_slice_iter(&read(folder, &format!("{name}.pem"))?).collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(&read(folder, &format!("{name}.key"))?)?))
}

pub fn server(folder: &Path, protocol: &[u8]) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(folder)?, provider.clone()).build()?;
    let (chain, key) = own(folder, Role::Server)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

pub fn client(folder: &Path, protocol: &[u8]) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key) = own(folder, Role::Client)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(folder)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}
