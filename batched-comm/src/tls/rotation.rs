//! The exchange of a CA: for a while `ca.pem` holds the old one and the new one.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::issue::{Replace, ca_path, publish, read};
use crate::error::IdentityError;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
const HINT: &str = "it is the ca.pem of a CA that init_ca made";

/// Adds the CAs in the file `ca_pem` to those in `ca.pem` in `dir`, which then holds the old ones and these;
/// what is there already stays as it is. Takes effect with [`Identity::load`](super::Identity::load) and
/// [`Endpoint::set_identity`](crate::Endpoint::set_identity).
///
/// # Errors
/// When one of the files is missing or holds no certificate, or `ca.pem` cannot be written.
pub fn trust(dir: impl AsRef<Path>, ca_pem: impl AsRef<Path>) -> Result<(), IdentityError> {
    let path = ca_path(dir.as_ref());
    let mut trusted = certificates(&path)?;
    for added in certificates(ca_pem.as_ref())? {
        if !trusted.contains(&added) {
            trusted.push(added);
        }
    }
    write(&path, &trusted)
}

/// Removes the CAs in the file `ca_pem` from those in `ca.pem` in `dir`. Takes effect as [`trust`] does;
/// connections that stand go on.
///
/// # Errors
/// As [`trust`]; and when no CA would be left, and nothing has changed.
pub fn distrust(dir: impl AsRef<Path>, ca_pem: impl AsRef<Path>) -> Result<(), IdentityError> {
    let path = ca_path(dir.as_ref());
    let removed = certificates(ca_pem.as_ref())?;
    let mut trusted = certificates(&path)?;
    trusted.retain(|certificate| !removed.contains(certificate));
    if trusted.is_empty() {
        let reason = "no CA would be left: add the new one first".into();
        return Err(IdentityError::Content { path, what: "certificate", reason });
    }
    write(&path, &trusted)
}

/// A certificate as it stands in a file; what it says counts, not how its lines are broken.
struct Certificate {
    text: String,
    content: CertificateDer<'static>,
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, IdentityError> {
    let content = |reason: String| IdentityError::Content { path: path.to_owned(), what: "certificate", reason };
    let text = String::from_utf8(read(path, HINT)?).map_err(|error| content(error.to_string()))?;
    let mut found = Vec::new();
    for section in text.split_inclusive(END) {
        let Some(start) = section.find(BEGIN) else { continue };
        let text = &section[start..];
        let certificate =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| content(error.to_string()))?;
        found.push(Certificate { text: text.to_owned(), content: certificate });
    }
    if found.is_empty() { Err(content("there is none in it".into())) } else { Ok(found) }
}

fn write(path: &Path, certificates: &[Certificate]) -> Result<(), IdentityError> {
    let text: String = certificates.iter().map(|certificate| format!("{}\n", certificate.text)).collect();
    publish(path, text.as_bytes(), Replace::Yes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tls::{Identity, init_ca, issue};

    #[test]
    fn a_node_trusts_both_cas_in_between_and_one_again_in_the_end() {
        let [old, new, node] = [0; 3].map(|_| tempfile::tempdir().unwrap());
        for ca in [&old, &new] {
            init_ca(ca.path()).unwrap();
            issue(ca.path(), "n1", &[]).unwrap();
        }
        let take = |from: &Path, file: &str| {
            fs::copy(from.join(file), node.path().join(file)).unwrap();
        };
        for file in ["ca.pem", "n1.pem", "n1.key"] {
            take(old.path(), file);
        }
        let load = || Identity::load(node.path(), "n1");
        let [old_ca, new_ca] = [&old, &new].map(|dir| dir.path().join("ca.pem"));
        load().unwrap();
        for _ in 0..2 {
            trust(node.path(), &new_ca).unwrap();
            assert_eq!(certificates(&node.path().join("ca.pem")).unwrap().len(), 2, "a second time adds none");
        }
        load().unwrap();
        for file in ["n1.pem", "n1.key"] {
            take(new.path(), file);
        }
        load().unwrap();
        distrust(node.path(), &old_ca).unwrap();
        assert_eq!(certificates(&node.path().join("ca.pem")).unwrap().len(), 1);
        load().unwrap();
        let none = distrust(node.path(), &new_ca);
        assert!(matches!(none, Err(IdentityError::Content { .. })), "{none:?}");
        load().unwrap();
        take(old.path(), "n1.pem");
        assert!(load().is_err(), "the old CA's certificate is of no use any more");
        assert!(matches!(trust(node.path(), node.path().join("gone.pem")), Err(IdentityError::Missing { .. })));
    }
}
