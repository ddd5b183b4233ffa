//! Who must vouch for a backend.

use llmproxy_core::BoxError;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;

/// Why a file of certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// There is none in it.
    #[error("has no certificate in it; it must be PEM, with lines like -----BEGIN CERTIFICATE-----")]
    None,
    /// One is damaged.
    #[error("its certificate {position} can't be read: {problem}")]
    Damaged {
        /// Which one, counted from 1.
        position: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Whether `pem` can stand in [`Backend::ca`](llmproxy_core::Backend::ca).
///
/// # Errors
///
/// If there is no certificate in it, or one that is damaged.
///
/// ```
/// assert!(llmproxy_upstream::check_certificates(b"no PEM").is_err());
/// ```
pub fn check_certificates(pem: &[u8]) -> Result<(), CertificatesError> {
    roots(pem).map(|_| ())
}

/// With `ca` only that vouches, else those whom the machine trusts.
pub(crate) fn config(ca: Option<&[u8]>, http2: bool) -> Result<ClientConfig, BoxError> {
    let builder = match ca {
        Some(pem) => ClientConfig::builder().with_root_certificates(roots(pem)?),
        None => ClientConfig::builder().with_platform_verifier()?,
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = if http2 { vec!["h2".into(), "http/1.1".into()] } else { vec!["http/1.1".into()] };
    Ok(config)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, CertificatesError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let damaged = |problem: String| CertificatesError::Damaged { position: index + 1, problem };
        let certificate = certificate.map_err(|error| damaged(error.to_string()))?;
        roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
    }
    if roots.is_empty() { Err(CertificatesError::None) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_good_certificate_says_what_is_wrong_with_it() {
        let check = |pem: &str, expected: &str| {
            let error = check_certificates(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "no certificate");
        check("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no certificate");
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "its certificate 1 can't be read");
        check("-----BEGIN CERTIFICATE-----\n***\n-----END CERTIFICATE-----\n", "its certificate 1 can't be read");
    }
}
