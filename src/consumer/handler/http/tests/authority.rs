//! A private certificate authority, and a server that it vouches for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

use hyper::Response;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslVerifyMode};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509NameBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_openssl::SslStream;

use super::serve;

pub struct Authority {
    cert: X509,
    key: PKey<Private>,
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let key = new_key();
        let cert = certificate("outboxd test authority", &key, None);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), cert.to_pem().unwrap()).unwrap();
        Self { cert, key, folder }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Certificate and key of a client.
    pub fn client_files(&self) -> (PathBuf, PathBuf) {
        let key = new_key();
        let cert = certificate("client", &key, Some(self));
        let paths = (self.folder.path().join("client.pem"), self.folder.path().join("client.key"));
        std::fs::write(&paths.0, cert.to_pem().unwrap()).unwrap();
        std::fs::write(&paths.1, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        paths
    }

    /// Answers 200 over TLS, to clients of that authority only if one is named.
    pub async fn serve(&self, clients: Option<&Self>) -> SocketAddr {
        let key = new_key();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_certificate(&certificate("localhost", &key, Some(self))).unwrap();
        if let Some(clients) = clients {
            let mut store = X509StoreBuilder::new().unwrap();
            store.add_cert(clients.cert.clone()).unwrap();
            acceptor.set_cert_store(store.build());
            acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        let acceptor = acceptor.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = SslStream::new(Ssl::new(acceptor.context()).unwrap(), stream).unwrap();
                tokio::spawn(async move {
                    if Pin::new(&mut stream).accept().await.is_ok() {
                        serve(stream, || Response::new("".into()), mpsc::unbounded_channel().0).await;
                    }
                });
            }
        });
        address
    }
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

/// Signed by that authority, else by itself and an authority.
fn certificate(name: &str, key: &PKey<Private>, issuer: Option<&Authority>) -> X509 {
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut cert = X509::builder().unwrap();
    cert.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    cert.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    cert.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    cert.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    cert.set_subject_name(&subject).unwrap();
    cert.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.cert.subject_name())).unwrap();
    cert.set_pubkey(key).unwrap();
    if issuer.is_none() {
        cert.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    let names = SubjectAlternativeName::new().dns(name).build(&cert.x509v3_context(None, None)).unwrap();
    cert.append_extension(names).unwrap();
    cert.sign(issuer.map_or(key, |issuer| &issuer.key), MessageDigest::sha256()).unwrap();
    cert.build()
}
