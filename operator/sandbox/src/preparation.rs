//! Prepares the host's side of a sandbox: its directory, the owners in it, and what of the system it will see.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arguments::{SYSTEM_DIRECTORIES, SYSTEM_SETTINGS, System, SystemEntry};
use crate::config::SandboxUser;
use crate::disk::{LARGEST_DEPTH, LARGEST_ENTRIES};
use crate::error::SandboxError;

/// Directories in a sandbox's directory that belong to the sandbox user.
const PARTS: [&str; 3] = ["workspace", "home", "run"];

/// Makes the directory and its parts where they are missing, for the owner only, and gives the parts to `user`. A part
/// whose owner is already `user` is taken to be so throughout.
pub(crate) fn directories(directory: &Path, user: Option<SandboxUser>) -> Result<(), SandboxError> {
    make_private(directory)?;
    for part in PARTS {
        let part = directory.join(part);
        make_private(&part)?;
        if let Some(user) = user {
            let metadata = std::fs::symlink_metadata(&part).map_err(SandboxError::file("examine", &part))?;
            if (metadata.uid(), metadata.gid()) != (user.uid, user.gid) {
                give(&part, user)?;
            }
        }
    }
    Ok(())
}

fn make_private(directory: &Path) -> Result<(), SandboxError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| {
            let metadata = std::fs::symlink_metadata(directory)?;
            if !metadata.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            if metadata.permissions().mode() & 0o777 == 0o700 {
                return Ok(());
            }
            std::fs::set_permissions(directory, Permissions::from_mode(0o700))
        })
        .map_err(SandboxError::file("create", directory))
}

/// Gives a file, or a directory and everything in it, to `user`, following no links. Bounded like a measurement; the
/// directory itself comes last, so that an attempt that was cut short is made again.
pub(crate) fn give(path: &Path, user: SandboxUser) -> Result<(), SandboxError> {
    let mut entries = 0;
    give_below(path, user, 0, &mut entries).map_err(SandboxError::file("change the owner of", path))
}

fn give_below(path: &Path, user: SandboxUser, depth: usize, entries: &mut u64) -> io::Result<()> {
    *entries += 1;
    if depth > LARGEST_DEPTH || *entries > LARGEST_ENTRIES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large or too deeply nested"));
    }
    if std::fs::symlink_metadata(path)?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_below(&entry?.path(), user, depth + 1, entries)?;
        }
    }
    lchown(path, Some(user.uid), Some(user.gid))
}

/// The bubblewrap program: the one given, or the first `bwrap` in `PATH`.
pub(crate) fn find_bubblewrap(given: Option<&Path>) -> Result<PathBuf, SandboxError> {
    let candidates: Vec<PathBuf> = match given {
        Some(path) => vec![path.to_owned()],
        None => std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).map(|directory| directory.join("bwrap")).collect())
            .unwrap_or_default(),
    };
    let runnable = |path: &&PathBuf| {
        path.is_absolute()
            && path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    candidates.iter().find(runnable).cloned().ok_or_else(|| SandboxError::BubblewrapMissing {
        looked: given.map_or_else(
            || "no `bwrap` in PATH".to_owned(),
            |path| format!("{} is not an absolute path of a program", path.display()),
        ),
    })
}

/// What the system directories of this machine are like, and what this bubblewrap can do.
pub(crate) fn system(bubblewrap: &Path) -> Result<System, SandboxError> {
    let output = Command::new(bubblewrap)
        .arg("--help")
        .output()
        .map_err(|error| SandboxError::BubblewrapMissing { looked: format!("{}: {error}", bubblewrap.display()) })?;
    // Newer versions print it to their standard output, older ones to standard error.
    let help = [output.stdout, output.stderr].concat();
    let help = String::from_utf8_lossy(&help);
    let entries = SYSTEM_DIRECTORIES.iter().chain(SYSTEM_SETTINGS).filter_map(|path| entry(Path::new(path))).collect();
    Ok(System {
        entries,
        bounded_tmp: help.contains("--size "),
        disable_user_namespaces: help.contains("--disable-userns"),
    })
}

fn entry(path: &Path) -> Option<SystemEntry> {
    // A link out of `/etc` is bound as what it points to; one of a system directory stays a link.
    if SYSTEM_DIRECTORIES.iter().any(|directory| Path::new(directory) == path)
        && let Ok(target) = std::fs::read_link(path)
    {
        return Some(SystemEntry::Link(path.to_owned(), target));
    }
    path.exists().then(|| SystemEntry::Bind(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_private_also_when_they_were_not() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("s");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        directories(&directory, None).unwrap();
        for path in [directory.clone(), directory.join("workspace"), directory.join("run")] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn a_link_in_place_of_a_part_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("s");
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink("/usr", directory.join("workspace")).unwrap();
        assert!(directories(&directory, None).is_err());
    }

    #[test]
    fn a_missing_bubblewrap_says_how_to_install_it() {
        let error = find_bubblewrap(Some(Path::new("/nonexistent/bwrap"))).unwrap_err();
        assert!(error.to_string().contains("apt-get install bubblewrap"));
    }
}
