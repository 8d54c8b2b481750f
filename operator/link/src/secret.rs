//! The shared secret's file, read again when it changes.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use hmac::Mac as _;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};

use crate::{
    error::TrustError,
    limits::{MAX_SECRET_FILE_BYTES, MAX_SECRETS, MIN_SECRET_BYTES, SECRET_CHECK},
    proof::mac,
};

/// The secrets of a file: one in use, and others that are accepted while they come or go. So a secret is changed without a
/// pause: the new one is added everywhere as a second line, then put first, then the old one is removed.
#[derive(Debug)]
pub struct SecretFile {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    secrets: Arc<[SecretString]>,
    stamp: Stamp,
    looked: Instant,
}

/// What tells that a file was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl SecretFile {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self, TrustError> {
        let stamp = stamp(path).map_err(|source| unreadable(path, source))?;
        let secrets = read(path)?;
        Ok(Self { path: path.to_owned(), inner: Mutex::new(Inner { secrets, stamp, looked: Instant::now() }) })
    }

    /// The secrets as the file has them now, looked at once per second at the most. A file that cannot be used any more leaves
    /// the secrets before it in force, and is said in the log.
    pub(crate) fn current(&self) -> Arc<[SecretString]> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.looked.elapsed() >= SECRET_CHECK {
            inner.looked = Instant::now();
            match stamp(&self.path) {
                Ok(stamp) if stamp == inner.stamp => {}
                Ok(stamp) => {
                    inner.stamp = stamp;
                    match read(&self.path) {
                        Ok(secrets) => {
                            tracing::info!(path = %self.path.display(), "the shared secret was changed");
                            inner.secrets = secrets;
                        }
                        Err(error) => tracing::error!(%error, "the shared secret before it stays in force"),
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "the secret file cannot be read: its secret stays in force");
                }
            }
        }
        Arc::clone(&inner.secrets)
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() })
}

fn unreadable(path: &Path, source: std::io::Error) -> TrustError {
    TrustError::Unreadable { path: path.display().to_string(), source }
}

fn read(path: &Path) -> Result<Arc<[SecretString]>, TrustError> {
    let mut text = String::new();
    let file = File::open(path).map_err(|source| unreadable(path, source))?;
    file.take(MAX_SECRET_FILE_BYTES).read_to_string(&mut text).map_err(|source| unreadable(path, source))?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let usable = (1..=MAX_SECRETS).contains(&lines.len()) && lines.iter().all(|line| line.len() >= MIN_SECRET_BYTES);
    if !usable {
        return Err(TrustError::NoSecret { path: path.display().to_string() });
    }
    Ok(lines.into_iter().map(SecretString::from).collect())
}

/// A key for one purpose and one holder, made from a key that has many: who has the one cannot find the other. There always is
/// one.
pub fn derived_key(key: &SecretBox<[u8; 32]>, purpose: &str, holder: &str) -> Option<SecretBox<[u8; 32]>> {
    let made = mac(key.expose_secret(), &[b"ash derived key", purpose.as_bytes(), holder.as_bytes()])?;
    Some(SecretBox::new(Box::new(made.finalize().into_bytes().into())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, thread::sleep};

    use secrecy::{ExposeSecret as _, SecretBox};

    use super::{SecretFile, derived_key};
    use crate::limits::SECRET_CHECK;

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "short").unwrap();
        assert!(SecretFile::open(&path).unwrap_err().to_string().contains("openssl rand"));
        fs::write(&path, format!("\n{}\n", "a".repeat(32))).unwrap();
        let file = SecretFile::open(&path).unwrap();
        let first = |file: &SecretFile| file.current()[0].expose_secret().to_owned();
        assert_eq!(first(&file), "a".repeat(32));
        fs::write(&path, format!("{}\n{}\n", "b".repeat(40), "a".repeat(32))).unwrap();
        // The look is by time: waiting for it is the point here.
        while first(&file) != "b".repeat(40) {
            sleep(SECRET_CHECK / 20);
        }
        assert_eq!(file.current().len(), 2);
        assert!(!format!("{file:?}").contains("bbbb"));
    }

    #[test]
    fn holders_have_keys_of_their_own() {
        let key = SecretBox::new(Box::new([7; 32]));
        let made = |purpose: &str, holder: &str| *derived_key(&key, purpose, holder).unwrap().expose_secret();
        assert_ne!(made("tokens", "one"), made("tokens", "two"));
        assert_eq!(made("tokens", "one"), made("tokens", "one"));
        assert_ne!(made("a", "bc"), made("ab", "c"));
    }
}
