//! Builds a bundle file by file, within its bounds.

use std::collections::BTreeMap;

use crate::{Bundle, BundleError, BundleFile, MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, REQUIRED_FILE, path::normalise};

/// A bundle that is not complete yet. Refuses what goes over a bound before it keeps it.
#[derive(Debug, Default)]
pub struct BundleBuilder {
    files: BTreeMap<String, BundleFile>,
    bytes: u64,
}

impl BundleBuilder {
    /// With no file yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that still fit.
    pub fn room(&self) -> u64 {
        MAX_BUNDLE_BYTES.saturating_sub(self.bytes)
    }

    /// Adds a file. `executable` is what its sender says; where that is nothing, a file that begins with `#!` is.
    pub fn add(&mut self, path: &str, executable: Option<bool>, bytes: Vec<u8>) -> Result<(), BundleError> {
        let path = normalise(path)?;
        if bytes.len() as u64 > self.room() {
            return Err(BundleError::TooLarge);
        }
        if self.files.len() >= MAX_BUNDLE_FILES {
            return Err(BundleError::TooManyFiles);
        }
        if self.files.contains_key(path) {
            return Err(BundleError::Duplicate(path.to_owned()));
        }
        self.bytes += bytes.len() as u64;
        let executable = executable.unwrap_or_else(|| bytes.starts_with(b"#!"));
        self.files.insert(path.to_owned(), BundleFile { executable, bytes });
        Ok(())
    }

    /// The bundle, if its files make one.
    pub fn finish(self) -> Result<Bundle, BundleError> {
        for path in self.files.keys() {
            let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
            if let Some(both) = folders.into_iter().find(|folder| self.files.contains_key(*folder)) {
                return Err(BundleError::FileAndFolder(both.to_owned()));
            }
        }
        if !self.files.contains_key(REQUIRED_FILE) {
            return Err(BundleError::NoClaudeMd);
        }
        Ok(Bundle { files: self.files })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::BundleBuilder;
    use crate::{Bundle, BundleError, MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES};

    fn error(paths: &[&str]) -> BundleError {
        Bundle::from_files(paths.iter().map(|path| ((*path).to_owned(), Vec::new()))).unwrap_err()
    }

    #[test]
    fn what_is_no_bundle_says_why() {
        assert!(matches!(error(&[]), BundleError::NoClaudeMd));
        assert!(matches!(error(&["sub/CLAUDE.md"]), BundleError::NoClaudeMd));
        assert!(matches!(error(&["CLAUDE.md", "./CLAUDE.md"]), BundleError::Duplicate(_)));
        assert!(matches!(error(&["CLAUDE.md", "a.b", "a", "a/b/c"]), BundleError::FileAndFolder(path) if path == "a"));
        assert!(matches!(error(&["CLAUDE.md", "../x"]), BundleError::Path(_)));
    }

    #[test]
    fn bounds_hold() {
        let mut builder = BundleBuilder::new();
        let half = usize::try_from(MAX_BUNDLE_BYTES / 2).unwrap();
        builder.add("CLAUDE.md", None, vec![0; half]).unwrap();
        builder.add("b", None, vec![0; half]).unwrap();
        assert!(matches!(builder.add("c", None, vec![0]), Err(BundleError::TooLarge)));
        builder.add("c", None, vec![]).unwrap();

        let mut builder = BundleBuilder::new();
        for n in 0..MAX_BUNDLE_FILES {
            builder.add(&n.to_string(), None, vec![]).unwrap();
        }
        assert!(matches!(builder.add("x", None, vec![]), Err(BundleError::TooManyFiles)));
    }

    #[test]
    fn scripts_can_be_executed() {
        let mut builder = BundleBuilder::new();
        builder.add("CLAUDE.md", None, b"x".to_vec()).unwrap();
        builder.add("run", None, b"#!/bin/sh\n".to_vec()).unwrap();
        builder.add("not", Some(false), b"#!/bin/sh\n".to_vec()).unwrap();
        builder.add("program", Some(true), b"\x7fELF".to_vec()).unwrap();
        let bundle = builder.finish().unwrap();
        let modes: Vec<_> = bundle.files().map(|(path, file)| (path.as_str(), file.mode())).collect();
        assert_eq!(modes, [("CLAUDE.md", 0o644), ("not", 0o644), ("program", 0o755), ("run", 0o755)]);
    }
}
