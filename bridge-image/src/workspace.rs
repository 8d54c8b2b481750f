//! The workspace: every path of the host is opened beneath its folder by the kernel (`openat2`), never by looking at strings.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use ash_protocol::message::{Refusal, RefusalCategory};
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, open, openat2},
    io::Errno,
};

use crate::{shared::refusal, work::io_refusal};

/// Folders below each other at the most; deeper ones are refused.
pub(crate) const MAX_DEPTH: usize = 200;

/// Mode of folders that are made on the way to a file.
const FOLDER_MODE: Mode = Mode::from_bits_retain(0o755);

/// The workspace's folder.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: OwnedFd,
    path: PathBuf,
}

/// One entry of a folder.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: OsString,
    pub(crate) kind: FileType,
}

impl Workspace {
    /// Opens the folder; it is held for ever, so that renaming it changes nothing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let root = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what a path names, beneath the workspace.
    pub(crate) fn open_beneath(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        resolve(self.root.as_fd(), path, flags, ResolveFlags::empty())
    }

    /// Opens what a path names, beneath the workspace and through no link.
    pub(crate) fn open_exactly(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        resolve(self.root.as_fd(), path, flags, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens what a path names beneath a folder of the workspace that is open, and through no link.
    pub(crate) fn open_in(folder: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, Errno> {
        resolve(folder.as_fd(), path.as_ref(), flags, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens the folder that a path's last part is in; makes it where `make` says so.
    pub(crate) fn parent(&self, path: &Relative, make: bool) -> Result<OwnedFd, Refusal> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let failed = |error| io_refusal(&path.to_string(), error);
        let mut folder = self.open_beneath(Path::new(""), flags).map_err(failed)?;
        let mut so_far = PathBuf::new();
        for part in &path.parts[..path.parts.len() - 1] {
            so_far.push(part);
            folder = match self.open_beneath(&so_far, flags) {
                Err(Errno::NOENT) if make => {
                    match mkdirat(&folder, part, FOLDER_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(failed(error)),
                    }
                    self.open_beneath(&so_far, flags).map_err(failed)?
                }
                opened => opened.map_err(failed)?,
            };
        }
        Ok(folder)
    }
}

fn resolve(folder: BorrowedFd<'_>, path: &Path, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // With a path only, the kernel refuses flags that mean nothing there.
    let more = if flags.contains(OFlags::PATH) { OFlags::CLOEXEC } else { OFlags::CLOEXEC | OFlags::NOCTTY };
    let how = how | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(folder, path, flags | more, Mode::empty(), how) {
            // Something was renamed on the way; the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// A path that the host named: at least one part, none of them `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relative {
    parts: Vec<OsString>,
}

impl Relative {
    /// Reads a path. Leading, doubled and trailing slashes and `.` count for nothing; an absolute path is refused.
    pub(crate) fn parse(path: &[u8]) -> Result<Self, Refusal> {
        let invalid = |why: &str| {
            let shown = String::from_utf8_lossy(&path[..path.len().min(200)]);
            refusal(RefusalCategory::Invalid, format!("{shown}: {why}"))
        };
        if path.starts_with(b"/") {
            return Err(invalid("the path has to be relative to the workspace"));
        }
        if path.contains(&0) {
            return Err(invalid("a path cannot hold NUL"));
        }
        let parts: Vec<OsString> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(|part| OsString::from_vec(part.to_vec()))
            .collect();
        if parts.iter().any(|part| part == "..") {
            return Err(invalid("the path leaves the workspace"));
        }
        if parts.is_empty() {
            return Err(invalid("the path names no file"));
        }
        if parts.len() > MAX_DEPTH {
            return Err(invalid("the path has too many folders"));
        }
        Ok(Self { parts })
    }

    /// The last part.
    pub(crate) fn name(&self) -> &OsString {
        // There is at least one: the constructor sees to it.
        &self.parts[self.parts.len() - 1]
    }

    /// The whole path.
    pub(crate) fn path(&self) -> PathBuf {
        self.parts.iter().collect()
    }

    /// How many folders it is in.
    pub(crate) fn depth(&self) -> usize {
        self.parts.len() - 1
    }
}

impl std::fmt::Display for Relative {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path().display().fmt(formatter)
    }
}

/// What is in a folder, sorted so that walking it depth first gives paths in the order of their bytes.
pub(crate) fn items(folder: impl AsFd) -> Result<Vec<Item>, Errno> {
    let mut items = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let status = rustix::fs::statat(&folder, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(status.st_mode)
            }
            known => known,
        };
        items.push(Item { name: OsString::from_vec(name.to_vec()), kind });
    }
    items.sort_by_cached_key(|item| {
        let mut key = item.name.as_bytes().to_vec();
        if item.kind == FileType::Directory {
            key.push(b'/');
        }
        key
    });
    Ok(items)
}

/// Opens a folder of the bridge's own for writing files into, made where it is not there.
pub(crate) fn own_folder(path: &Path) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(path)?;
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, os::unix::fs::symlink, path::Path};

    use proptest::prelude::*;
    use rustix::{fs::OFlags, io::Errno};

    use super::{Relative, Workspace, items};

    #[test]
    fn links_lead_nowhere_outside() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("workspace");
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(root.path().join("secret"), "no").unwrap();
        symlink("../secret", folder.join("out")).unwrap();
        symlink("/etc", folder.join("absolute")).unwrap();
        symlink("in", folder.join("within")).unwrap();
        let workspace = Workspace::open(&folder).unwrap();
        let open = |path: &str| workspace.open_beneath(Path::new(path), OFlags::RDONLY);
        assert_eq!(open("out").unwrap_err(), Errno::XDEV);
        assert_eq!(open("absolute/passwd").unwrap_err(), Errno::XDEV);
        assert_eq!(open("../secret").unwrap_err(), Errno::XDEV);
        open("within").unwrap();
        let put = |path: &str| workspace.parent(&Relative::parse(path.as_bytes()).unwrap(), true);
        assert!(put("absolute/new").is_err());
        assert!(put("within/a/b").is_ok());
        assert!(folder.join("in/a").is_dir());
    }

    #[test]
    fn entries_come_in_the_order_of_whole_paths() {
        let root = tempfile::tempdir().unwrap();
        for file in ["a/x", "a.txt", "a-b"] {
            fs::create_dir_all(root.path().join(file).parent().unwrap()).unwrap();
            fs::write(root.path().join(file), "").unwrap();
        }
        let workspace = Workspace::open(root.path()).unwrap();
        let folder = workspace.open_beneath(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let names: Vec<_> = items(&folder).unwrap().into_iter().map(|item| item.name).collect();
        assert_eq!(names, ["a-b", "a.txt", "a"]);
    }

    proptest! {
        #[test]
        fn no_path_climbs(path in prop::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(relative) = Relative::parse(&path) {
                let climbs = relative.path().components().any(|part| !matches!(part, std::path::Component::Normal(_)));
                prop_assert!(!climbs);
            }
        }
    }
}
