//! One port with and without TLS: what the first bytes decide, whose certificate it is, and that it follows its files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstem::client::{Client, ClientError, Puller, PullerConfig};
use mainstem::message::{QueueId, QueueOffset};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Server, batch, from, soon};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2 that has to come first: SETTINGS without any.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// The pair that a server made for itself.
fn own(server: &Server) -> (PathBuf, PathBuf) {
    let dir = server.data.path().join("data/tls");
    (dir.join("certificate.pem"), dir.join("key.pem"))
}

fn own_certificate(server: &Server) -> Vec<u8> {
    std::fs::read(own(server).0).unwrap()
}

/// A new pair in a directory: its files.
fn pair_in(dir: &Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = (dir.join("c.pem"), dir.join("k.pem"));
    std::fs::write(&files.0, made.cert.pem()).unwrap();
    std::fs::write(&files.1, made.signing_key.serialize_pem()).unwrap();
    files
}

async fn with_pair(more: &[&str]) -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = pair_in(dir.path());
    let certificate = format!("tls.certificate={}", certificate.display());
    let key = format!("tls.key={}", key.display());
    let server = Server::with(&[&[certificate.as_str(), &key], more].concat()).await;
    (server, dir)
}

/// The address of a server by a name that certificates have.
fn by_name(server: &Server) -> String {
    format!("localhost:{}", server.at.grpc.port())
}

/// A connection over TLS that says nothing yet, to a server that is known by `certificate`.
async fn handshake(
    server: &Server,
    certificate: &[u8],
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(server.at.grpc).await?;
    let name = ServerName::try_from("localhost").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// Says the preface and returns the type of the frame that comes first.
async fn first_frame(stream: &mut TlsStream<TcpStream>) -> u8 {
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let mut head = [0; 9];
    soon(stream.read_exact(&mut head)).await.unwrap();
    head[3]
}

/// All that comes back for `talk` over a connection without TLS.
async fn answer_to(server: &Server, talk: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.at.grpc).await.unwrap();
    stream.write_all(talk).await.unwrap();
    let mut answer = Vec::new();
    // Closed with unread bytes may reach us as a reset.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

fn closed(reason: &str) -> String {
    format!("mainstem_connections_closed_total{{reason=\"{reason}\"}}")
}

async fn body_of_next(puller: &mut Puller) -> Vec<u8> {
    let mut bodies = Vec::new();
    while bodies.is_empty() {
        let part = soon(puller.next()).await.unwrap();
        part.for_each(|message| bodies.push(message.body.to_vec())).unwrap();
    }
    bodies.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_serves_clients_with_tls_and_without() {
    let server = Server::start().await;
    let certificate = own_certificate(&server);
    let port = server.at.grpc.port();
    for (at, address) in [
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        format!("https://127.0.0.1:{port}"),
    ]
    .iter()
    .enumerate()
    {
        let client = Client::connect_trusting(address, &certificate).await.unwrap();
        client.send("t", Some(QueueId::new(0)), batch(&["by TLS"])).await.unwrap();
        let at = QueueOffset::new(u64::try_from(at).unwrap());
        let begin = [(QueueId::new(0), at)];
        let mut puller = client.puller("t", &begin, PullerConfig::default()).await.unwrap();
        assert_eq!(body_of_next(&mut puller).await, b"by TLS");
    }
    let plain = Client::connect(&format!("http://{}", server.at.grpc)).await.unwrap();
    assert_eq!(plain.status().await.unwrap().topics, 1);
    let pulled = server.pull(from("t", 0, 0)).await.unwrap();
    assert_eq!(pulled.next_offset, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_comes_back_over_tls_as_it_was() {
    let server = Server::start().await;
    let certificate = own_certificate(&server);
    let client = Client::connect_trusting(&by_name(&server), &certificate).await.unwrap();
    let body: String = (0..400_000).map(|n| format!("{n} ")).collect();
    client.send("t", Some(QueueId::new(0)), batch(&[&body])).await.unwrap();
    let begin = [(QueueId::new(0), QueueOffset::ZERO)];
    let mut puller = client.puller("t", &begin, PullerConfig::default()).await.unwrap();
    assert!(body_of_next(&mut puller).await == body.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_ends_the_connection_on_the_clients_side() {
    let server = Server::start().await;
    let other = tempfile::tempdir().unwrap();
    let other = std::fs::read(pair_in(other.path()).0).unwrap();
    let error = Client::connect_trusting(&by_name(&server), &other).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    server.until_metric(&closed("tls"), 1).await;
    // Nobody else vouches for it either.
    let error = Client::connect(&format!("https://{}", by_name(&server))).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_trusted_has_to_be_a_certificate_and_the_scheme_has_to_fit() {
    let address = "localhost:1";
    let error = Client::connect_trusting(address, b"no PEM").await.unwrap_err();
    assert!(matches!(error, ClientError::NoCertificate), "{error:?}");
    let dir = tempfile::tempdir().unwrap();
    let certificate = std::fs::read(pair_in(dir.path()).0).unwrap();
    for address in ["http://localhost:1", "ftp://localhost:1", "https://localhost", "https://:1"] {
        let error = Client::connect_trusting(address, &certificate).await.unwrap_err();
        assert!(matches!(error, ClientError::BadAddress { .. }), "{address}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_alpn_is_served_and_one_that_asks_for_http_1_alone_is_not() {
    let server = Server::start().await;
    let certificate = own_certificate(&server);
    for alpn in [&["h2"][..], &[], &["http/1.1", "h2"]] {
        let mut stream = handshake(&server, &certificate, alpn).await.unwrap();
        let expected = (!alpn.is_empty()).then_some(&b"h2"[..]);
        assert_eq!(stream.get_ref().1.alpn_protocol(), expected, "{alpn:?}");
        assert_eq!(first_frame(&mut stream).await, 4, "SETTINGS for {alpn:?}");
    }
    let refused = handshake(&server, &certificate, &["http/1.1"]).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    server.until_metric(&closed("tls"), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_pair_is_for_its_owner_alone_and_the_same_after_a_restart() {
    let server = Server::start().await;
    let (certificate, key) = own(&server);
    for (path, mode) in
        [(certificate.parent().unwrap(), 0o700), (&certificate, 0o600), (&key, 0o600)]
    {
        let found = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{}", path.display());
    }
    let before = (std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap());
    let (data, ended) = server.stop();
    soon(ended).await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    assert!((std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap()) == before);
    handshake(&server, &before.0, &["h2"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_pair_is_served_and_none_is_made() {
    let (server, dir) = with_pair(&[]).await;
    let certificate = std::fs::read(dir.path().join("c.pem")).unwrap();
    let client = Client::connect_trusting(&by_name(&server), &certificate).await.unwrap();
    client.send("t", None, batch(&["x"])).await.unwrap();
    assert!(!own(&server).0.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pair_is_for_new_connections_and_the_old_ones_go_on() {
    let (server, dir) = with_pair(&[]).await;
    let old = std::fs::read(dir.path().join("c.pem")).unwrap();
    let before = Client::connect_trusting(&by_name(&server), &old).await.unwrap();
    assert_eq!(server.metric("mainstem_certificate_stale").await, Some(0));
    // rcgen's year 4096.
    let expiry = server.metric("mainstem_certificate_expiry_seconds").await;
    assert_eq!(expiry, Some(67_090_118_400));

    // Half of a change, as it stands between the two files.
    std::fs::write(dir.path().join("k.pem"), "").unwrap();
    soon(server.until_metric("mainstem_certificate_stale", 1)).await;
    handshake(&server, &old, &["h2"]).await.unwrap();
    pair_in(dir.path());
    let new = std::fs::read(dir.path().join("c.pem")).unwrap();
    soon(async {
        while handshake(&server, &new, &["h2"]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    handshake(&server, &old, &["h2"]).await.unwrap_err();
    assert_eq!(server.metric("mainstem_certificate_stale").await, Some(0));
    before.send("t", None, batch(&["by the old one"])).await.unwrap();
    let after = Client::connect_trusting(&by_name(&server), &new).await.unwrap();
    after.send("t", None, batch(&["by the new one"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_speaks_http_1_is_told_so_and_garbage_is_cut_off() {
    let server = Server::start().await;
    for talk in ["GET / HTTP/1.1\r\nhost: x\r\n\r\n", "POST /x HTTP/1.1\r\n\r\n", "PUT"] {
        let answer = answer_to(&server, talk.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 505 HTTP Version Not Supported\r\n"), "{answer}");
        assert!(answer.ends_with(
            "This port speaks gRPC over HTTP/2. Health and metrics are on the port of HTTP/1.1.\n"
        ));
    }
    for talk in [&b"\0\0\0\0"[..], b"\r\n\r\n", b"get / HTTP/1.1"] {
        assert_eq!(answer_to(&server, talk).await, "", "{talk:?}");
    }
    server.until_metric(&closed("foreign"), 6).await;

    let certificate = own_certificate(&server);
    let mut stream = handshake(&server, &certificate, &[]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 505"), "{answer}");
    server.until_metric(&closed("foreign"), 7).await;

    // A record of TLS, and nothing in it that belongs there.
    let mut stream = TcpStream::connect(server.at.grpc).await.unwrap();
    stream.write_all(b"\x16\x03\x01\x00\x05hello").await.unwrap();
    let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    server.until_metric(&closed("tls"), 1).await;
    drop(TcpStream::connect(server.at.grpc).await.unwrap());
    server.until_metric(&closed("silent"), 1).await;
    server.until_metric("mainstem_connections", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_plain_is_forbidden_tls_is_served_alone() {
    let server = Server::with(&["tls.plain=false"]).await;
    assert_eq!(answer_to(&server, PREFACE).await, "");
    server.until_metric(&closed("plain"), 1).await;
    let answer = answer_to(&server, b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 505"), "{answer}");
    let certificate = own_certificate(&server);
    let client = Client::connect_trusting(&by_name(&server), &certificate).await.unwrap();
    client.send("t", None, batch(&["x"])).await.unwrap();
}
