use tokio_postgres::config::TargetSessionAttrs;

use super::*;
use crate::config::SslMode;

fn url(text: &str) -> PostgresUrl {
    PostgresUrl::parse(text, None).unwrap_or_else(|problem| panic!("{text}: {problem}"))
}

#[test]
fn the_address_names_user_host_port_and_database_and_no_password() {
    for (text, address) in [
        ("postgres://u:hunter2@h/db", "u@h:5432/db"),
        ("postgresql://u@h:6000/db?sslmode=require", "u@h:6000/db"),
        ("postgres://u@h1:1,h2:2/db?target_session_attrs=primary", "u@h1:1,h2:2/db"),
        ("postgres://u@[::1]:6000/db", "u@[::1]:6000/db"),
        ("postgres:///db?host=/run/pg&user=u&port=6000", "u@/run/pg:6000/db"),
        ("postgres://u@%2Frun%2Fpg/db", "u@/run/pg:5432/db"),
        ("postgres://u@h?sslmode=disable", "u@h:5432/u"),
        ("postgres://u:a?b@h/db?sslmode=disable", "u@h:5432/db"),
        ("postgres:///db", "/var/run/postgresql:5432/db"),
        ("host=h user=u password='a b\\'c' dbname = db sslmode=disable", "u@h:5432/db"),
        ("hostaddr=127.0.0.1 user=u", "u@127.0.0.1:5432/u"),
        ("host=a,b port=1,2 user=u dbname=db", "u@a:1,b:2/db"),
    ] {
        let url = url(text);
        assert_eq!(url.address(), address, "{text}");
        assert!(!format!("{url:?}{}", url.show()).contains("hunter2"));
    }
}

#[test]
fn what_the_driver_knows_reaches_it() {
    let client =
        url("postgres://u:p%40ss@h/db?target_session_attrs=primary&options=-c%20x%3D1&keepalives_count=3")
            .client_config();
    assert_eq!(client.get_password(), Some(&b"p@ss"[..]));
    assert_eq!(client.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    assert_eq!((client.get_options(), client.get_keepalives_retries()), (Some("-c x=1"), Some(3)));
    let client = url("host=h password='it\\'s \\\\ a' dbname=db").client_config();
    assert_eq!(client.get_password(), Some(&b"it's \\ a"[..]));
}

#[test]
fn sslmode_and_its_files_mean_what_libpq_means() {
    for (text, mode) in [
        ("postgres://h/db", SslMode::Prefer),
        ("postgres://h/db?sslmode=allow", SslMode::Allow),
        ("postgres://h/db?ssl=true", SslMode::Require),
        ("postgres://h/db?sslmode=verify-ca&sslrootcert=/ca", SslMode::VerifyCa),
        ("host=h sslmode=verify-full sslrootcert=/ca", SslMode::VerifyFull),
        ("host=h sslrootcert=system", SslMode::VerifyFull),
    ] {
        assert_eq!(url(text).tls().mode, mode, "{text}");
    }
    let tls = url("postgres://h/db?sslmode=require&sslrootcert=/c%20a&sslcert=/c&sslkey=/k").tls().clone();
    let path = |text: &str| Some(text.into());
    assert_eq!(
        tls,
        Tls { mode: SslMode::Require, root_cert: path("/c a"), cert: path("/c"), key: path("/k") }
    );
    assert_eq!(url("host=h sslmode=verify-full sslrootcert=system").tls().root_cert, None);
}

#[test]
fn files_that_are_not_named_come_from_the_home_as_with_libpq() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".postgresql");
    std::fs::create_dir(&folder).unwrap();
    let parse = |text: &str| PostgresUrl::parse(text, Some(home.path()));
    assert!(parse("host=h sslmode=verify-full").unwrap_err().contains("there is no ~/.postgresql/root.crt"));
    for file in ["root.crt", "postgresql.crt"] {
        std::fs::write(folder.join(file), "").unwrap();
    }
    assert!(parse("host=h sslmode=verify-full").unwrap_err().contains("has a client certificate but no key"));
    std::fs::write(folder.join("postgresql.key"), "").unwrap();
    let tls = parse("host=h sslmode=verify-full").unwrap().tls().clone();
    assert_eq!(tls.root_cert, Some(folder.join("root.crt")));
    assert_eq!(
        (tls.cert, tls.key),
        (Some(folder.join("postgresql.crt")), Some(folder.join("postgresql.key")))
    );
}

#[test]
fn what_is_wrong_is_said_without_quoting() {
    for (text, expected) in [
        ("", "must not be empty"),
        (" ", "must not be empty"),
        ("hunter2", "must be a URL such as"),
        ("mysql://u:hunter2@h/db", "must be a URL such as"),
        ("postgres://u:hunter2@h/db?sslmode=verify-fulll", "did you mean `verify-full`?"),
        ("postgres://u@h/db?sslmod=require", "an option that there is not; did you mean `sslmode`?"),
        ("postgres://u@h/db?password=a&hunter2=x", "an option that there is not"),
        ("postgres://u@h/db?gssencmode=disable", "`gssencmode`, which outboxd does not support"),
        ("postgres://u@h/db?hunter2", "an option without a value"),
        ("host=h password='hunter2", "a quote that does not end"),
        ("postgres://u@h/db?target_session_attrs=standby", "outboxd writes"),
        ("postgres://u@a,b,c/db?port=1,2", "3 hosts but"),
        ("host=a,b port=1,2,3", "2 hosts but 3 ports"),
        ("postgres://u@h/db?sslrootcert=system&sslmode=require", "only safe with sslmode=verify-full"),
        ("postgres://u@h/db?sslmode=verify-ca", "asks to verify the server"),
    ] {
        let problem = PostgresUrl::parse(text, None).unwrap_err();
        assert!(problem.contains(expected) && !problem.contains("hunter2"), "{text}: {problem}");
    }
}

#[test]
fn another_database_of_the_same_server_keeps_everything_else() {
    for text in [
        "postgres://u:p%3Fw@h:5433/app?sslmode=disable&connect_timeout=3",
        "postgres://u:p%3Fw@h:5433?sslmode=disable&connect_timeout=3&dbname=app",
        "host=h port=5433 user=u password='p?w' dbname=app sslmode=disable connect_timeout=3",
    ] {
        let other = text.parse::<PostgresUrl>().unwrap().of_database("other").unwrap();
        // What is written into a file is what it means.
        for url in [&other, &other.written().expose_secret().parse().unwrap()] {
            assert_eq!(url.address(), "u@h:5433/other", "{text}");
            assert_eq!(url.tls().mode, SslMode::Disable, "{text}");
            assert_eq!(url.client_config().get_password(), Some(&b"p?w"[..]), "{text}");
        }
    }
}
