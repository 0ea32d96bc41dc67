//! Whom the handler trusts, and as whom it comes.

use std::fs;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::super::SetupError;
use crate::config::group::HttpHandler;

pub fn builder(settings: &HttpHandler) -> Result<SslConnectorBuilder, SetupError> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(refuse("url"))?;
    if let Some(path) = &settings.ca_file {
        // A store of its own: these authorities instead of the system's, not besides them.
        let mut store = X509StoreBuilder::new().map_err(refuse("ca_file"))?;
        for authority in certificates("ca_file", path)? {
            store.add_cert(authority).map_err(refuse("ca_file"))?;
        }
        builder.set_cert_store(store.build());
    }
    match (&settings.client_cert, &settings.client_key) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            for (place, cert) in certificates("client_cert", cert)?.into_iter().enumerate() {
                if place == 0 { builder.set_certificate(&cert) } else { builder.add_extra_chain_cert(cert) }
                    .map_err(refuse("client_cert"))?;
            }
            let key = PKey::private_key_from_pem(&read("client_key", key)?).map_err(refuse("client_key"))?;
            builder
                .set_private_key(&key)
                .and_then(|()| builder.check_private_key())
                .map_err(refuse("client_key"))?;
        }
        (Some(_), None) => return Err(alone("client_cert", "client_key")),
        (None, Some(_)) => return Err(alone("client_key", "client_cert")),
    }
    Ok(builder)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<X509>, SetupError> {
    let found = X509::stack_from_pem(&read(key, path)?).map_err(refuse(key))?;
    if found.is_empty() {
        return Err(SetupError::Setting {
            key,
            problem: format!("{} holds no certificate in PEM", path.display()),
        });
    }
    Ok(found)
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, SetupError> {
    fs::read(path).map_err(|source| SetupError::File { key, path: path.to_owned(), source })
}

fn refuse(key: &'static str) -> impl Fn(ErrorStack) -> SetupError {
    move |error| SetupError::Setting { key, problem: format!("cannot be used: {error}") }
}

fn alone(key: &'static str, other: &str) -> SetupError {
    SetupError::Setting { key, problem: format!("needs `{other}` too") }
}
