//! A certificate and its key, from PEM to what the port needs of them.
//!
//! TLS 1.2 and 1.3 by rustls over ring. `h2` is offered by ALPN; a client that asks for nothing by ALPN is taken for
//! one of HTTP/2, one that asks for other things alone is refused.

use std::fmt::Write as _;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use tokio_rustls::rustls;
pub(crate) use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::{self, Decode as _};

/// A certificate with its key, as the port uses them.
pub(crate) struct Pair {
    /// How handshakes are answered.
    pub(crate) config: Arc<ServerConfig>,
    /// Whom the certificate names.
    pub(crate) subject: String,
    /// Of the certificate, in hexadecimal digits: what people compare.
    pub(crate) sha256: String,
    /// When it expires, in seconds since 1970.
    pub(crate) expires: u64,
    /// The same for people.
    pub(crate) expires_at: String,
}

/// Why two texts are not a certificate and its key.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The first text is not PEM.
    #[error("the certificate is not PEM")]
    CertificatePem(#[source] pem::Error),
    /// The first text holds none.
    #[error("there is no certificate in PEM in its file")]
    NoCertificate,
    /// The certificate cannot be read.
    #[error("the certificate is malformed")]
    Malformed(#[source] der::Error),
    /// The second text holds no key, or an encrypted one.
    #[error("the key is not a private key in PEM without a password")]
    Key(#[source] pem::Error),
    /// They do not belong together, or are of a kind that is not known here.
    #[error("the certificate and the key cannot be used together")]
    Refused(#[source] rustls::Error),
}

impl Pair {
    /// Of a certificate in PEM, with those between it and a root behind it, and its private key in PEM.
    ///
    /// # Errors
    /// They are not that, or do not belong together.
    pub(crate) fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(PairError::CertificatePem)?;
        let first = chain.first().ok_or(PairError::NoCertificate)?;
        let facts = Certificate::from_der(first).map_err(PairError::Malformed)?.tbs_certificate;
        let expires = facts.validity.not_after;
        let sha256 = hexadecimal(digest(&SHA256, first).as_ref());
        let key = PrivateKeyDer::from_pem_slice(key).map_err(PairError::Key)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(PairError::Refused)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            subject: facts.subject.to_string(),
            sha256,
            expires: expires.to_unix_duration().as_secs(),
            expires_at: expires.to_date_time().to_string(),
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
