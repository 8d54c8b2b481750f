//! The address of a Postgres database: read so that nothing of it can be printed but host, port and name.

use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use url::Url;

/// What the server sees as the name of its client.
const APPLICATION: &str = "ash";

/// Parameters that an address may have. The driver would log the value of one that it does not know, which a typing mistake may
/// make a password.
const PARAMETERS: [&str; 16] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

/// Why an address is none. Says nothing of what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It is no URL.
    #[error("it is no URL: write it like postgres://user:password@host:5432/database, with %-escapes in the password")]
    Syntax,
    /// It has another scheme.
    #[error("it does not begin with postgres:// or postgresql://")]
    Scheme,
    /// It has a parameter that is not known.
    #[error(
        "it has a parameter that is not known; known are sslmode, sslrootcert, sslcert, sslkey, host, port, dbname, user, \
         password, application_name"
    )]
    Parameter,
    /// One of its parts cannot be read.
    #[error("one of its parts cannot be read: look at port, sslmode and %-escapes")]
    Part,
}

/// Reads an address.
pub(super) fn read(address: &SecretString) -> Result<PgConnectOptions, InvalidAddress> {
    let url = Url::parse(address.expose_secret()).map_err(|_| InvalidAddress::Syntax)?;
    if !["postgres", "postgresql"].contains(&url.scheme()) {
        return Err(InvalidAddress::Scheme);
    }
    if url.query_pairs().any(|(name, _)| !PARAMETERS.contains(&&*name)) {
        return Err(InvalidAddress::Parameter);
    }
    let options = PgConnectOptions::from_str(address.expose_secret()).map_err(|_| InvalidAddress::Part)?;
    let options =
        if options.get_application_name().is_none() { options.application_name(APPLICATION) } else { options };
    Ok(options.disable_statement_logging())
}

/// The database as people may see it.
pub(super) fn place(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{database} at {host}:{}", options.get_port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::{InvalidAddress, place, read};

    #[test]
    fn an_address_is_read_and_shown_without_its_secrets() {
        let options = read(&"postgres://me:hunter2@db.example:5433/ash?sslmode=require".into()).unwrap();
        assert_eq!(place(&options), "ash at db.example:5433");
        let options = read(&"postgresql:///ash?host=/run/pg&user=me&password=hunter2".into()).unwrap();
        assert_eq!(place(&options), "ash at /run/pg:5432");
    }

    #[test]
    fn what_is_wrong_is_said_without_what_was_given() {
        for (address, expected) in [
            ("hunter2", InvalidAddress::Syntax),
            ("mysql://me:hunter2@host/ash", InvalidAddress::Scheme),
            ("postgres://me@host/ash?passwort=hunter2", InvalidAddress::Parameter),
            ("postgres://me:hunter2@host/ash?sslmode=hunter2", InvalidAddress::Part),
            ("postgres://me:hunter2@host:port/ash", InvalidAddress::Syntax),
        ] {
            let error = read(&address.into()).unwrap_err();
            assert_eq!(error, expected, "{address}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(postgres://)?[ -~]{0,60}") {
            let _ = read(&text.into());
        }
    }
}
