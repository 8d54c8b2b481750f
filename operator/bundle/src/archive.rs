//! A bundle as an archive: tar, compressed with zstd.

use std::io::{self, Read as _};

use crate::{Bundle, BundleBuilder, BundleError, MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES};

/// zstd's own default: a bundle is packed once and unpacked often.
const COMPRESSION_LEVEL: i32 = 3;

/// What tar may add to each file: its header, a second one and the name itself where the name is long, padding.
const TAR_BYTES_PER_FILE: u64 = 4096;

/// Bytes that an unpacked archive may have, headers included.
const MAX_TAR_BYTES: u64 = MAX_BUNDLE_BYTES + MAX_BUNDLE_FILES as u64 * TAR_BYTES_PER_FILE;

impl Bundle {
    /// Packs the bundle. The same files give the same bytes: sorted, no times, no owners.
    pub fn to_tar_zstd(&self) -> io::Result<Vec<u8>> {
        let encoder = zstd::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
        let mut archive = tar::Builder::new(encoder);
        for (path, file) in self.files() {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(file.mode());
            header.set_size(file.bytes.len() as u64);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            archive.append_data(&mut header, path, file.bytes.as_slice())?;
        }
        archive.into_inner()?.finish()
    }

    /// Unpacks an archive into memory and checks it as if it came from a stranger: only regular files (folders are passed over),
    /// the same rules for paths, the same bounds, however small the archive is.
    pub fn from_tar_zstd(archive: &[u8]) -> Result<Self, BundleError> {
        let decoder = zstd::Decoder::new(archive).map_err(BundleError::Archive)?;
        let mut archive = tar::Archive::new(decoder.take(MAX_TAR_BYTES));
        let mut builder = BundleBuilder::new();
        for entry in archive.entries().map_err(BundleError::Archive)? {
            let entry = entry.map_err(BundleError::Archive)?;
            let kind = entry.header().entry_type();
            if kind.is_dir() {
                continue;
            }
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if !kind.is_file() {
                return Err(BundleError::Special(path));
            }
            let mode = entry.header().mode().map_err(BundleError::Archive)?;
            if entry.size() > builder.room() {
                return Err(BundleError::TooLarge);
            }
            let size = entry.size();
            let mut bytes = Vec::new();
            entry.take(size).read_to_end(&mut bytes).map_err(BundleError::Archive)?;
            if bytes.len() as u64 != size {
                return Err(BundleError::Archive(io::ErrorKind::UnexpectedEof.into()));
            }
            builder.add(&path, Some(mode & 0o111 != 0), bytes)?;
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use crate::{Bundle, BundleBuilder, BundleError};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_bundle_comes_back(files in prop::collection::btree_map("[a-z]{1,120}", (any::<bool>(), prop::collection::vec(any::<u8>(), 0..2000)), 0..12)) {
            let mut builder = BundleBuilder::new();
            builder.add("CLAUDE.md", None, b"x".to_vec()).unwrap();
            for (path, (executable, bytes)) in files {
                builder.add(&format!("{path}/{path}"), Some(executable), bytes).unwrap();
            }
            let bundle = builder.finish().unwrap();
            let packed = bundle.to_tar_zstd().unwrap();
            prop_assert_eq!(&packed, &bundle.to_tar_zstd().unwrap());
            let back = Bundle::from_tar_zstd(&packed).unwrap();
            prop_assert_eq!(back.digest(), bundle.digest());
            prop_assert_eq!(back, bundle);
        }

        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Bundle::from_tar_zstd(&bytes).is_err());
        }
    }

    fn pack(name: &[u8], kind: tar::EntryType, bytes: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, bytes).unwrap();
        archive.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn paths_that_leave_links_and_bombs_are_refused() {
        let outside = pack(b"../CLAUDE.md", tar::EntryType::Regular, b"x");
        assert!(matches!(Bundle::from_tar_zstd(&outside), Err(BundleError::Path(_))));
        let link = pack(b"CLAUDE.md", tar::EntryType::Symlink, b"");
        assert!(matches!(Bundle::from_tar_zstd(&link), Err(BundleError::Special(_))));
        let bomb = pack(b"CLAUDE.md", tar::EntryType::Regular, &vec![0; (100 << 20) + 1]);
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(Bundle::from_tar_zstd(&bomb), Err(BundleError::TooLarge)));
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let bundle = Bundle::from_files([("CLAUDE.md".to_owned(), vec![7; 5000])]).unwrap();
        let packed = bundle.to_tar_zstd().unwrap();
        assert!(Bundle::from_tar_zstd(&packed[..packed.len() / 2]).is_err());
    }
}
