//! An agent's files as a bundle: read from a folder or a request, checked, digested, packed and unpacked.
//!
//! A bundle is a value: a sorted map from path to file, complete and within its bounds from the moment it exists. Two bundles
//! with the same files have the same digest and, with one release of zstd, the same archive.

mod archive;
mod builder;
mod directory;
mod error;
mod inspect;
mod path;

use std::collections::{BTreeMap, btree_map};

use sha2::{Digest, Sha256};

pub use builder::BundleBuilder;
pub use error::BundleError;
pub use path::{InvalidPath, MAX_PATH_BYTES, MAX_PATH_PARTS, normalise};

/// Bytes that the files of a bundle may have in all: 100 MiB. Beyond it the bundle is refused.
pub const MAX_BUNDLE_BYTES: u64 = 100 << 20;

/// Files that a bundle may have: 10,000. Beyond it the bundle is refused.
pub const MAX_BUNDLE_FILES: usize = 10_000;

/// The file that makes a folder an agent.
pub const REQUIRED_FILE: &str = "CLAUDE.md";

/// What the digest begins with, so that a later canonical form never gives the digest of this one.
const DIGEST_DOMAIN: &[u8] = b"ash-bundle-1\n";

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFile {
    /// Whether it can be executed: mode 0o755, otherwise 0o644. No other permission bit is kept.
    pub executable: bool,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl BundleFile {
    /// Its permission bits: 0o755 or 0o644.
    pub fn mode(&self) -> u32 {
        if self.executable { 0o755 } else { 0o644 }
    }
}

/// The files of an agent: at least `CLAUDE.md`, paths that stay inside, within [`MAX_BUNDLE_BYTES`] and [`MAX_BUNDLE_FILES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    files: BTreeMap<String, BundleFile>,
}

impl Bundle {
    /// A bundle of files that came in a request. A file that begins with `#!` can be executed; [`BundleBuilder`] takes files
    /// whose sender says so.
    pub fn from_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, BundleError> {
        let mut builder = BundleBuilder::new();
        for (path, bytes) in files {
            builder.add(&path, None, bytes)?;
        }
        builder.finish()
    }

    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<&BundleFile> {
        self.files.get(path)
    }

    /// The files, sorted by path (by bytes). Paths are relative, with `/` between their parts.
    pub fn files(&self) -> btree_map::Iter<'_, String, BundleFile> {
        self.files.iter()
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Never true: a bundle has its [`REQUIRED_FILE`].
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.values().map(|file| file.bytes.len() as u64).sum()
    }

    /// SHA-256, lower-case hexadecimal, over the canonical form: per file, sorted by path, the path's length (8 bytes, little
    /// endian), the path, 1 or 0 for executable, the length (8 bytes, little endian), the bytes.
    pub fn digest(&self) -> String {
        use std::fmt::Write as _;

        let mut hash = Sha256::new();
        hash.update(DIGEST_DOMAIN);
        for (path, file) in &self.files {
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path.as_bytes());
            hash.update([u8::from(file.executable)]);
            hash.update((file.bytes.len() as u64).to_le_bytes());
            hash.update(&file.bytes);
        }
        hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Bundle;

    fn bundle(files: &[(&str, &str)]) -> Bundle {
        Bundle::from_files(files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()))).unwrap()
    }

    #[test]
    fn the_digest_depends_on_files_and_not_on_their_order() {
        let one = bundle(&[("CLAUDE.md", "a"), ("b", "c")]);
        let other = bundle(&[("b", "c"), ("./CLAUDE.md", "a")]);
        assert_eq!(one.digest(), other.digest());
        assert_eq!(one.digest().len(), 64);
        assert_ne!(one.digest(), bundle(&[("CLAUDE.md", "a"), ("b", "d")]).digest());
        assert_ne!(one.digest(), bundle(&[("CLAUDE.md", "a"), ("bc", "")]).digest());
    }

    #[test]
    fn the_digest_is_the_same_in_every_release() {
        assert_eq!(
            bundle(&[("CLAUDE.md", "hello")]).digest(),
            "3b52e8a3e3c590d1d0c31e54888d6cd5c53792209964f3fe92c37db355bb3bb5"
        );
    }
}
