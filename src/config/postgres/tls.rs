//! libpq's `sslmode` and the files that go with it.

use std::path::{Path, PathBuf};

use crate::config::nearest::did_you_mean;

/// Where libpq looks for what the connection string does not name, below the home.
const ROOT_CERT: &str = ".postgresql/root.crt";
const CERT: &str = ".postgresql/postgresql.crt";
const KEY: &str = ".postgresql/postgresql.key";

/// `sslrootcert=system`: the authorities that the machine trusts.
const SYSTEM: &str = "system";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    /// `None` where the server is verified: the authorities of the system.
    pub root_cert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// The options of a connection string that are about TLS.
#[derive(Default)]
pub struct TlsOptions {
    pub sslmode: Option<String>,
    pub sslrootcert: Option<String>,
    pub sslcert: Option<String>,
    pub sslkey: Option<String>,
}

impl TlsOptions {
    /// Files that are not named are taken from `home` where libpq would.
    pub fn resolve(self, home: Option<&Path>) -> Result<Tls, String> {
        let in_home = |file: &str| home.map(|home| home.join(file)).filter(|path| path.exists());
        let named = |path: Option<String>| path.filter(|path| !path.is_empty()).map(PathBuf::from);
        let mode = self.sslmode.as_deref().map(mode).transpose()?;
        if self.sslrootcert.as_deref() == Some(SYSTEM) {
            if mode.is_some_and(|mode| mode != SslMode::VerifyFull) {
                return Err("has sslrootcert=system, which is only safe with sslmode=verify-full".into());
            }
            let (cert, key) = client(named(self.sslcert), named(self.sslkey), in_home)?;
            return Ok(Tls { mode: SslMode::VerifyFull, root_cert: None, cert, key });
        }
        let mode = mode.unwrap_or_default();
        if mode == SslMode::Disable {
            return Ok(Tls { mode, ..Tls::default() });
        }
        let root_cert = named(self.sslrootcert).or_else(|| in_home(ROOT_CERT));
        if matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) && root_cert.is_none() {
            return Err(format!(
                "asks to verify the server, but names no authority and there is no ~/{ROOT_CERT}: add \
                 sslrootcert=PATH, or sslrootcert=system with sslmode=verify-full"
            ));
        }
        let (cert, key) = client(named(self.sslcert), named(self.sslkey), in_home)?;
        Ok(Tls { mode, root_cert, cert, key })
    }
}

fn mode(name: &str) -> Result<SslMode, String> {
    MODES.iter().find(|(mode, _)| *mode == name).map(|(_, mode)| *mode).ok_or_else(|| {
        let names = MODES.map(|(name, _)| name);
        format!("has an unknown sslmode: there are {}{}", names.join(", "), did_you_mean(name, names))
    })
}

/// A certificate of our own goes with its key.
fn client(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    in_home: impl Fn(&str) -> Option<PathBuf>,
) -> Result<(Option<PathBuf>, Option<PathBuf>), String> {
    let Some(cert) = cert.or_else(|| in_home(CERT)) else { return Ok((None, None)) };
    let Some(key) = key.or_else(|| in_home(KEY)) else {
        return Err(format!("has a client certificate but no key: add sslkey=PATH, there is no ~/{KEY}"));
    };
    Ok((Some(cert), Some(key)))
}
