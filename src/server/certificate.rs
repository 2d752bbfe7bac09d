//! The certificate of the gRPC port: where it comes from, and that it follows its files.
//!
//! | files | made by | when they are no pair at a start | when they change later |
//! | --- | --- | --- | --- |
//! | `tls.certificate`, `tls.key` | the operator | refused | new connections get the new pair |
//! | `tls/` in the data directory | the first start, under the lock of the directory | refused | as above |
//!
//! One task reads both files every [`LOOK_AGAIN`] and compares them, byte for byte, with what it read before: so it
//! follows a rename, a link that points elsewhere and a file that was written in place. What is no pair is warned of
//! once, and the old pair is served on. Connections keep the pair that they began with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::broker::Certified;
use crate::config::Config;
use crate::file::FileError;
use crate::file::disk::{Disk as _, RealDisk, read_file, write_file_atomically};
use crate::format::names::{TLS_CERTIFICATE, TLS_DIR, TLS_KEY};
use crate::grpc::tls::{Pair, PairError, ServerConfig};

/// How often the files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The longest file that is read: a chain of certificates is a few KiB.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Where Linux tells the name of the machine.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The name in a certificate that a broker made for itself.
const OWN_NAME: &str = "mainstem self-signed";

/// Why there is no certificate to serve. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("no certificate for TLS")]
    Read(#[source] FileError),
    /// The files are there and are no certificate with its key.
    #[error("no certificate for TLS in {} with {}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        #[source]
        source: PairError,
    },
    /// The broker's own pair could not be made.
    #[error("no certificate for TLS could be made")]
    Make(#[source] rcgen::Error),
    /// The broker's own pair could not be written.
    #[error("no certificate for TLS could be kept")]
    Keep(#[source] FileError),
    /// The task that reads the files panicked.
    #[error("the task that reads the certificate ended in a panic")]
    Task(#[from] JoinError),
}

/// The two files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What was in them.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// The certificate that is served, and its files.
pub(super) struct Certificate {
    files: Files,
    /// What is served, as it was read.
    contents: Contents,
    served: watch::Sender<Arc<ServerConfig>>,
    told: Arc<Certified>,
    /// What was last said of files that cannot be served.
    complaint: Option<String>,
}

impl Certificate {
    /// Reads the files of the configuration, or the broker's own in the data directory, which are made if there is no
    /// certificate yet. To be called by whoever holds the lock of the data directory; `told` follows what is served.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub(super) async fn open(
        config: &Config,
        told: Arc<Certified>,
    ) -> Result<Self, CertificateError> {
        let (tls, data) = (config.tls.clone(), config.server.data.clone());
        let listen = config.server.listen.ip();
        let opened = spawn_blocking(move || {
            let files = match (tls.certificate, tls.key) {
                (Some(certificate), Some(key)) => Files { certificate, key },
                _ => own_files(&data, listen)?,
            };
            Self::of(files, told)
        });
        opened.await?
    }

    fn of(files: Files, told: Arc<Certified>) -> Result<Self, CertificateError> {
        let contents = files.read().map_err(CertificateError::Read)?;
        let pair = Pair::from_pem(&contents.certificate, &contents.key).map_err(|source| {
            let Files { certificate, key } = files.clone();
            CertificateError::Pair { certificate, key, source }
        })?;
        told.serves(pair.expires);
        say(&files, &pair);
        let (served, _) = watch::channel(pair.config);
        Ok(Self { files, contents, served, told, complaint: None })
    }

    /// What new connections are served with, from now on.
    pub(super) fn served(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.served.subscribe()
    }

    /// Follows the files until the returned set is dropped.
    pub(super) fn follow(self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut certificate = self;
            loop {
                sleep(LOOK_AGAIN).await;
                let looking = spawn_blocking(move || {
                    certificate.look_again();
                    certificate
                });
                certificate = match looking.await {
                    Ok(certificate) => certificate,
                    Err(error) => {
                        tracing::error!(%error, "the certificate's files are not followed any more");
                        return;
                    }
                };
            }
        });
        tasks
    }

    /// Serves what is in the files, if that is new and a pair.
    fn look_again(&mut self) {
        let found = match self.files.read() {
            Ok(found) => found,
            Err(error) => return self.complain(&error),
        };
        if found == self.contents && self.complaint.is_none() {
            return;
        }
        match Pair::from_pem(&found.certificate, &found.key) {
            Ok(pair) => {
                self.told.serves(pair.expires);
                self.complaint = None;
                if found != self.contents {
                    say(&self.files, &pair);
                    self.served.send_replace(pair.config);
                }
                self.contents = found;
            }
            Err(error) => self.complain(&error),
        }
    }

    /// Says once that the old pair is served on.
    fn complain(&mut self, error: &dyn std::error::Error) {
        self.told.stays_behind();
        let causes = std::iter::successors(Some(error), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        if self.complaint.as_ref() != Some(&text) {
            let Files { certificate, key } = &self.files;
            let (certificate, key) = (certificate.display(), key.display());
            tracing::warn!(%certificate, %key, "the old certificate is served on: {text}");
            self.complaint = Some(text);
        }
    }
}

impl Files {
    fn read(&self) -> Result<Contents, FileError> {
        Ok(Contents {
            certificate: read_file(&RealDisk, &self.certificate, MAX_FILE_LEN)?,
            key: read_file(&RealDisk, &self.key, MAX_FILE_LEN)?,
        })
    }
}

fn say(files: &Files, pair: &Pair) {
    let Pair { subject, sha256, expires_at, .. } = pair;
    let (file, subject) = (files.certificate.display(), subject.as_str());
    tracing::info!(%file, subject, %sha256, expires = %expires_at, "certificate");
}

/// The broker's own pair, made now if it has none.
fn own_files(data: &Path, listen: IpAddr) -> Result<Files, CertificateError> {
    let dir = data.join(TLS_DIR);
    let files = Files { certificate: dir.join(TLS_CERTIFICATE), key: dir.join(TLS_KEY) };
    RealDisk.create_dir(&dir).map_err(CertificateError::Keep)?;
    let has_one = RealDisk
        .list(&dir)
        .map_err(CertificateError::Keep)?
        .iter()
        .any(|entry| entry.name == TLS_CERTIFICATE);
    if !has_one {
        let (certificate, key) = make(listen).map_err(CertificateError::Make)?;
        // The certificate goes last: where one is, its key is too.
        for (name, text) in [(TLS_KEY, key), (TLS_CERTIFICATE, certificate)] {
            write_file_atomically(&RealDisk, &dir, name, text.as_bytes())
                .map_err(CertificateError::Keep)?;
        }
        tracing::info!(dir = %dir.display(), "made a self-signed certificate");
    }
    Ok(files)
}

/// A certificate that signs itself, and its key, both in PEM.
fn make(listen: IpAddr) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    // A name that cannot stand in a certificate is left out; so is one that cannot be read.
    let host = std::fs::read_to_string(HOST_NAME).unwrap_or_default();
    if let Ok(name) = host.trim().try_into()
        && !host.trim().is_empty()
    {
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    let local = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    params.subject_alt_names.extend(local.map(SanType::IpAddress));
    if !listen.is_unspecified() && !local.contains(&listen) {
        params.subject_alt_names.push(SanType::IpAddress(listen));
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, OWN_NAME);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Nobody renews it, so it outlives its broker, and is valid on machines whose clock is wrong.
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2200, 1, 1);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(files: &Files) -> Result<Certificate, CertificateError> {
        Certificate::of(files.clone(), Arc::default())
    }

    fn write(files: &Files, certificate: &str, key: &str) {
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
    }

    fn listen() -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    /// A pair that was made, and the same twice.
    fn made() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = own_files(dir.path(), listen()).unwrap();
        (dir, files)
    }

    #[test]
    fn an_own_pair_is_made_once_and_again_only_without_its_certificate() {
        let (dir, files) = made();
        let first = files.read().unwrap();
        assert_eq!(own_files(dir.path(), listen()).unwrap(), files);
        assert!(files.read().unwrap() == first, "it stays");
        std::fs::remove_file(&files.certificate).unwrap();
        own_files(dir.path(), listen()).unwrap();
        let second = files.read().unwrap();
        assert!(second.certificate != first.certificate && second.key != first.key);
        open(&files).unwrap();
    }

    #[test]
    fn an_own_certificate_says_who_it_is_and_does_not_expire_soon() {
        let (_dir, files) = made();
        let Contents { certificate, key } = files.read().unwrap();
        let pair = Pair::from_pem(&certificate, &key).unwrap();
        assert_eq!(pair.subject, "CN=mainstem self-signed");
        assert_eq!(pair.expires_at, "2200-01-01T00:00:00Z");
        assert_eq!(pair.expires, 7_258_118_400);
        assert_eq!(pair.sha256.len(), 64);
    }

    #[test]
    fn changed_files_are_served_and_broken_ones_are_not() {
        let (_dir, files) = made();
        let mut certificate = open(&files).unwrap();
        let told = Arc::clone(&certificate.told);
        let mut served = certificate.served();
        let mut look = || {
            certificate.look_again();
            let changed = served.has_changed().unwrap();
            served.mark_unchanged();
            (changed, told.is_stale())
        };
        assert_eq!(look(), (false, false));
        let (new, key) = make(listen()).unwrap();
        std::fs::write(&files.certificate, &new).unwrap();
        assert_eq!(look(), (false, true), "the old key does not go with it");
        std::fs::write(&files.key, &key).unwrap();
        assert_eq!(look(), (true, false));
        for (broken, its_key) in [("", key.as_str()), (&new, ""), (&new[..new.len() / 2], &key)] {
            write(&files, broken, its_key);
            assert_eq!(look(), (false, true));
        }
        std::fs::remove_file(&files.key).unwrap();
        assert_eq!(look(), (false, true));
        write(&files, &new, &key);
        assert_eq!(look(), (false, false), "what is served is back");
    }

    #[test]
    fn what_is_no_pair_is_refused_with_its_files_and_the_cause() {
        let (_dir, files) = made();
        let (new, key) = make(listen()).unwrap();
        let (_, other) = make(listen()).unwrap();
        let certificate_only = new.clone();
        for (certificate, key, cause) in [
            ("", key.as_str(), "there is no certificate in PEM in its file"),
            (&key, &key, "there is no certificate in PEM in its file"),
            (&new, &certificate_only, "the key is not a private key in PEM without a password"),
            (&new, &other, "the certificate and the key cannot be used together"),
        ] {
            write(&files, certificate, key);
            let error = open(&files).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(files.certificate.to_str().unwrap()), "{text}");
            assert!(text.contains(files.key.to_str().unwrap()), "{text}");
            let found = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(found, cause);
        }
        std::fs::remove_file(&files.key).unwrap();
        assert!(matches!(open(&files), Err(CertificateError::Read(FileError::NotFound { .. }))));
    }
}
