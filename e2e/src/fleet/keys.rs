//! What the processes of a fleet share, each in a file that only its owner reads.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// The keys' folder.
#[derive(Debug, Clone)]
pub struct Keys {
    folder: PathBuf,
}

impl Keys {
    /// Makes new keys in a folder of their own. Where an API key is given, it is that one.
    pub fn make(folder: &Path, api_key: Option<&str>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let keys = Self { folder: folder.to_owned() };
        write(&keys.fleet_secret(), &random())?;
        write(&keys.token_key(), &random())?;
        write(&keys.credential_key(), &random())?;
        write(&keys.api_key(), &api_key.map_or_else(|| format!("ash_{}", random()), ToOwned::to_owned))?;
        Ok(keys)
    }

    /// The file with the secret that coordinators and runners share.
    pub fn fleet_secret(&self) -> PathBuf {
        self.folder.join("fleet-secret")
    }

    /// The file with the key behind the sandboxes' tokens.
    pub fn token_key(&self) -> PathBuf {
        self.folder.join("token-key")
    }

    /// The file with the key that credentials are encrypted with.
    pub fn credential_key(&self) -> PathBuf {
        self.folder.join("credential-key")
    }

    /// The file with the key that clients need.
    pub fn api_key(&self) -> PathBuf {
        self.folder.join("api-key")
    }
}

/// 64 hexadecimal digits with 244 random bits, which the system's generator gives for random UUIDs.
fn random() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_new_each_time_and_their_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap().trim().to_owned();
        let keys = Keys::make(&folder.path().join("one"), None).unwrap();
        let other = Keys::make(&folder.path().join("two"), Some("mine")).unwrap();
        assert_ne!(read(keys.token_key()), read(other.token_key()));
        assert!(read(keys.token_key()).len() == 64 && read(keys.api_key()).starts_with("ash_"));
        assert_eq!(read(other.api_key()), "mine");
        assert_eq!(fs::metadata(keys.fleet_secret()).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
