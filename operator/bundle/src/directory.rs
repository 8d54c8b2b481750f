//! Reads a folder into a bundle.

use std::{
    fs::{self, File, OpenOptions},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{Bundle, BundleBuilder, BundleError, path::MAX_PATH_PARTS};

/// Folders and files of this name are left out: they are the version control's and not the agent's.
const SKIPPED: &str = ".git";

impl Bundle {
    /// Reads a folder. Links that stay inside are read through: the bundle has their targets' content. `.git` is left out.
    ///
    /// Refused by name: links that leave the folder or lead nowhere, sockets, pipes and devices, names that are not UTF-8, and
    /// what goes over a bound. Blocking: reads up to [`MAX_BUNDLE_BYTES`](crate::MAX_BUNDLE_BYTES).
    pub fn read_directory(folder: &Path) -> Result<Self, BundleError> {
        let root = fs::canonicalize(folder).map_err(BundleError::NoFolder)?;
        let mut reader = Reader { root: root.clone(), builder: BundleBuilder::new() };
        fs::read_dir(&root).map_err(BundleError::NoFolder)?;
        reader.folder(&root, "", 0)?;
        reader.builder.finish()
    }
}

struct Reader {
    root: PathBuf,
    builder: BundleBuilder,
}

impl Reader {
    /// Adds what is in a folder. `prefix` is its path in the bundle with a `/` at its end, or empty.
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), BundleError> {
        let unreadable = |source| BundleError::Unreadable { path: prefix.to_owned(), source };
        if depth >= MAX_PATH_PARTS {
            return Err(BundleError::TooDeep(prefix.chars().take(200).collect()));
        }
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            if name == SKIPPED {
                continue;
            }
            let Some(name) = name.to_str() else {
                return Err(BundleError::Path(crate::InvalidPath {
                    path: format!("{prefix}{}", name.to_string_lossy()).chars().take(200).collect(),
                    reason: "it is not UTF-8",
                }));
            };
            let path = format!("{prefix}{name}");
            let unreadable = |source| BundleError::Unreadable { path: path.clone(), source };
            let kind = entry.file_type().map_err(unreadable)?;
            let place = if kind.is_symlink() { self.follow(&entry.path(), &path)? } else { entry.path() };
            let metadata = fs::symlink_metadata(&place).map_err(unreadable)?;
            if metadata.is_dir() {
                self.folder(&place, &format!("{path}/"), depth + 1)?;
            } else if metadata.is_file() {
                self.file(&place, &path)?;
            } else {
                return Err(BundleError::Special(path));
            }
        }
        Ok(())
    }

    /// Where a link leads, if that is inside.
    fn follow(&self, link: &Path, path: &str) -> Result<PathBuf, BundleError> {
        let target = fs::canonicalize(link).map_err(|_| BundleError::LinkBroken(path.to_owned()))?;
        let inside = target.strip_prefix(&self.root).map_err(|_| BundleError::LinkLeaves(path.to_owned()))?;
        // A link into .git would bring back what is left out.
        if inside.iter().any(|part| part == SKIPPED) {
            return Err(BundleError::LinkLeaves(path.to_owned()));
        }
        Ok(target)
    }

    fn file(&mut self, place: &Path, path: &str) -> Result<(), BundleError> {
        let unreadable = |source| BundleError::Unreadable { path: path.to_owned(), source };
        let file = open(place).map_err(unreadable)?;
        // Asked of the open file: what the name meant a moment ago may have been replaced.
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(BundleError::Special(path.to_owned()));
        }
        let room = self.builder.room();
        if metadata.len() > room {
            return Err(BundleError::TooLarge);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
        file.take(room + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        self.builder.add(path, Some(metadata.mode() & 0o111 != 0), bytes)
    }
}

/// Opens a file, never through a link, and without waiting for the other end of a pipe.
fn open(place: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(place)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        fs,
        os::unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixListener,
        },
        path::Path,
    };

    use tempfile::TempDir;

    use crate::{Bundle, BundleError};

    fn folder() -> TempDir {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("CLAUDE.md"), "hello").unwrap();
        folder
    }

    fn read(folder: &Path) -> Result<Bundle, BundleError> {
        Bundle::read_directory(folder)
    }

    #[test]
    fn files_and_folders_are_read_and_git_is_not() {
        let folder = folder();
        fs::create_dir_all(folder.path().join(".claude/skills")).unwrap();
        fs::write(folder.path().join(".claude/skills/a.md"), "a").unwrap();
        fs::create_dir(folder.path().join(".git")).unwrap();
        fs::write(folder.path().join(".git/config"), "secret").unwrap();
        fs::write(folder.path().join("run"), "x").unwrap();
        fs::set_permissions(folder.path().join("run"), fs::Permissions::from_mode(0o750)).unwrap();
        let bundle = read(folder.path()).unwrap();
        let files: Vec<_> = bundle.files().map(|(path, file)| (path.as_str(), file.executable)).collect();
        assert_eq!(files, [(".claude/skills/a.md", false), ("CLAUDE.md", false), ("run", true)]);
    }

    #[test]
    fn links_inside_give_their_content() {
        let folder = folder();
        fs::create_dir(folder.path().join("docs")).unwrap();
        fs::write(folder.path().join("docs/a"), "a").unwrap();
        symlink("CLAUDE.md", folder.path().join("AGENTS.md")).unwrap();
        symlink("docs", folder.path().join("more")).unwrap();
        let bundle = read(folder.path()).unwrap();
        assert_eq!(bundle.file("AGENTS.md").unwrap().bytes, b"hello");
        assert_eq!(bundle.file("more/a").unwrap().bytes, b"a");
    }

    #[test]
    fn links_that_leave_are_refused_by_name() {
        let folder = folder();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("CLAUDE.md"), "x").unwrap();
        symlink("../CLAUDE.md", inner.join("up")).unwrap();
        assert!(matches!(read(&inner), Err(BundleError::LinkLeaves(path)) if path == "up"));
        fs::remove_file(inner.join("up")).unwrap();
        symlink("/etc", inner.join("etc")).unwrap();
        assert!(matches!(read(&inner), Err(BundleError::LinkLeaves(path)) if path == "etc"));
        fs::remove_file(inner.join("etc")).unwrap();
        symlink("nowhere", inner.join("gone")).unwrap();
        assert!(matches!(read(&inner), Err(BundleError::LinkBroken(path)) if path == "gone"));
    }

    #[test]
    fn a_link_to_a_folder_above_ends() {
        let folder = folder();
        symlink(".", folder.path().join("again")).unwrap();
        assert!(matches!(read(folder.path()), Err(BundleError::TooDeep(_))));
    }

    #[test]
    fn special_files_are_refused() {
        let folder = folder();
        let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(matches!(read(folder.path()), Err(BundleError::Special(path)) if path == "socket"));
    }

    #[test]
    fn what_is_no_folder_says_so() {
        let folder = folder();
        assert!(matches!(read(&folder.path().join("gone")), Err(BundleError::NoFolder(_))));
        assert!(matches!(read(&folder.path().join("CLAUDE.md")), Err(BundleError::NoFolder(_))));
        let empty = TempDir::new().unwrap();
        assert!(matches!(read(empty.path()), Err(BundleError::NoClaudeMd)));
    }
}
