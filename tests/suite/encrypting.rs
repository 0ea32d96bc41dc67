//! `sslmode` means what it means to libpq.

use std::net::Ipv4Addr;
use std::path::Path;

use outboxd::config::Config;
use outboxd::pg::{Connector, PgError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Database, Outboxd, PASSWORD, Postgres, tls};

fn url(host: &str, port: u16, database: &Database, options: &str) -> String {
    format!("postgres://agent:{PASSWORD}@{host}:{port}/{}?{options}", database.name)
}

/// Is the connection encrypted, if it comes about?
async fn is_encrypted(url: &str) -> Result<bool, PgError> {
    let config = Config::parse(&format!("[postgres]\nurl = \"{url}\"\n"), None, []).unwrap().config;
    let client = Connector::new(&config.postgres, "outboxd/test").connect().await?;
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

struct Authorities {
    right: String,
    wrong: String,
    _directory: TempDir,
}

fn authorities(postgres: &Postgres) -> Authorities {
    let directory = TempDir::new().unwrap();
    let file = |name: &str| directory.path().join(name);
    tls::write(&file("wrong.crt"), &file("wrong.key"));
    let root = |path: &Path| format!("sslrootcert={}", path.display());
    Authorities { right: root(&postgres.root_cert()), wrong: root(&file("wrong.crt")), _directory: directory }
}

#[tokio::test]
async fn each_mode_encrypts_and_verifies_as_much_as_it_says() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let Authorities { right, wrong, _directory } = authorities(postgres);
    // The certificate is made out for `localhost`, not for the address.
    let modes = [
        ("localhost", "sslmode=disable".to_owned(), Some(false)),
        ("localhost", "sslmode=allow".to_owned(), Some(false)),
        ("127.0.0.1", "sslmode=prefer".to_owned(), Some(true)),
        ("127.0.0.1", String::new(), Some(true)),
        ("127.0.0.1", "sslmode=require".to_owned(), Some(true)),
        ("127.0.0.1", format!("sslmode=require&{right}"), Some(true)),
        ("127.0.0.1", format!("sslmode=require&{wrong}"), None),
        ("127.0.0.1", format!("sslmode=verify-ca&{right}"), Some(true)),
        ("localhost", format!("sslmode=verify-ca&{wrong}"), None),
        ("localhost", format!("sslmode=verify-full&{right}"), Some(true)),
        ("127.0.0.1", format!("sslmode=verify-full&{right}"), None),
        ("localhost", format!("sslmode=verify-full&{wrong}"), None),
        ("localhost", "sslmode=verify-full&sslrootcert=system".to_owned(), None),
    ];
    for (host, options, expected) in modes {
        let found = is_encrypted(&url(host, postgres.port(), &database, &options)).await;
        assert_eq!(found.as_ref().ok().copied(), expected, "{host} {options}: {found:?}");
    }
}

/// A server that knows no TLS, in front of one that does.
async fn without_tls(upstream: u16) -> u16 {
    const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await?;
                let mut first = [0; 8];
                client.read_exact(&mut first).await?;
                if first == TLS_REQUEST {
                    client.write_all(b"N").await?;
                } else {
                    server.write_all(&first).await?;
                }
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

#[tokio::test]
async fn only_prefer_and_less_go_without_tls_where_the_server_has_none() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let Authorities { right, _directory, .. } = authorities(postgres);
    let port = without_tls(postgres.port()).await;
    for options in ["sslmode=disable", "sslmode=allow", "sslmode=prefer"] {
        let found = is_encrypted(&url("localhost", port, &database, options)).await;
        assert_eq!(found.as_ref().ok(), Some(&false), "{options}: {found:?}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let found =
            is_encrypted(&url("localhost", port, &database, &format!("sslmode={mode}&{right}"))).await;
        assert!(found.is_err(), "{mode} went without");
    }
}

#[tokio::test]
async fn a_server_that_is_not_the_one_is_told_with_its_address() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let Authorities { right, wrong, _directory } = authorities(postgres);
    let run = async |host: &str, options: String| {
        let url = url(host, postgres.port(), &database, &options);
        Outboxd::without_kafka(&database).postgres_url(&url).run(&["lanes", "list"]).await
    };
    let trusted = run("localhost", format!("sslmode=verify-full&{right}")).await;
    assert_eq!(trusted.code, 0, "{trusted:?}");
    for (host, authority) in [("127.0.0.1", right), ("localhost", wrong)] {
        let refused = run(host, format!("sslmode=verify-full&{authority}")).await;
        assert_eq!(refused.code, 3, "{refused:?}");
        let address = format!("{host}:{}", postgres.port());
        assert!(refused.stderr.contains(&address) && refused.stderr.contains("certificate"), "{refused:?}");
    }
    let nowhere = run("localhost", "sslmode=verify-full&sslrootcert=/nowhere/root.crt".to_owned()).await;
    assert!(nowhere.code != 0 && nowhere.stderr.contains("/nowhere/root.crt"), "{nowhere:?}");
    let unnamed = run("localhost", "sslmode=verify-ful".to_owned()).await;
    assert_eq!(unnamed.code, 2, "{unnamed:?}");
    assert!(unnamed.stderr.contains("verify-full"), "{}", unnamed.stderr);
}
