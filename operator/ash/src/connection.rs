//! Which server the client talks to, on which way, and with which key or token.

use std::{fs, path::Path};

use anyhow::Context;
use ash_client::{Client, ClusterOptions};
use secrecy::SecretString;
use url::{Host, Url};

use crate::arguments::Global;

/// The file in a server's data directory that holds its first key.
const KEY_FILE: &str = "initial-api-key";

/// The data directory of a server that was started in this folder.
const DEFAULT_DATA_DIRECTORY: &str = "./data";

/// The address of a server that was started here.
const DEFAULT_URL: &str = "http://127.0.0.1:4100";

/// A client as the arguments say. With a context, keys are not looked at: one that is meant for another server stays here.
pub(crate) async fn client(global: &Global) -> anyhow::Result<Client> {
    if global.context.is_some() {
        return Ok(Client::in_cluster(cluster(global)).await?);
    }
    let url = global.url.as_deref().unwrap_or(DEFAULT_URL);
    let key = match &global.api_key {
        Some(key) => Some(key.clone()),
        None => found_key(url, global.data_dir.as_deref())?,
    };
    Ok(Client::new(url, key.as_ref())?)
}

fn cluster(global: &Global) -> ClusterOptions {
    ClusterOptions {
        context: global.context.clone(),
        namespace: global.namespace.clone(),
        service_account: global.service_account.clone(),
        release_namespace: global.release_namespace.clone(),
        release_service: global.release_service.clone(),
        url: global.url.clone(),
    }
}

/// The key in a data directory. One that was not named is looked at only for a server on this machine: the key of the server
/// here is nothing for one elsewhere.
fn found_key(url: &str, data_directory: Option<&Path>) -> anyhow::Result<Option<SecretString>> {
    let directory = match data_directory {
        Some(directory) => directory,
        None if is_here(url) => Path::new(DEFAULT_DATA_DIRECTORY),
        None => return Ok(None),
    };
    let file = directory.join(KEY_FILE);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text.trim().into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!("cannot read the API key in {}; give it with --api-key or ASH_API_KEY", file.display())
        }),
    }
}

fn is_here(url: &str) -> bool {
    match Url::parse(url).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use secrecy::ExposeSecret;

    use super::{found_key, is_here};

    #[test]
    fn the_first_key_is_found_in_the_data_directory() {
        let folder = tempfile::tempdir().unwrap();
        assert!(found_key("http://127.0.0.1:4100", Some(folder.path())).unwrap().is_none());
        fs::write(folder.path().join("initial-api-key"), "ash_x\n").unwrap();
        let key = found_key("http://elsewhere:4100", Some(folder.path())).unwrap().unwrap();
        assert_eq!(key.expose_secret(), "ash_x");
    }

    #[test]
    fn a_key_of_this_machine_stays_here() {
        assert!(is_here("http://127.0.0.1:4100") && is_here("http://localhost:4100") && is_here("http://[::1]:4100"));
        assert!(!is_here("http://10.0.0.1:4100") && !is_here("https://localhost.example") && !is_here("?"));
    }
}
