//! Makes the workspace anew from a stream of entries and bytes.
//!
//! Folders can be written to until everything is in them; only then they get the mode and the time that they had, the innermost
//! first. Hard links are made when all files are there.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    ops::Range,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::Path,
};

use ash_protocol::{
    message::{Refusal, RefusalCategory, TreeRestored},
    tree::{Entry, EntryKind, EntryPath, Extent, MAX_LINE_BYTES},
};
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, chmodat, fchmod, ftruncate, futimens,
        linkat, mkdirat, openat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use tokio::{sync::mpsc, task::yield_now};

use super::NANOSECONDS;
use crate::{
    archive::Stream,
    files::remove_folder,
    shared::{Input, refusal},
    work::{SLICE_BYTES, SLICE_ENTRIES, io_refusal},
    workspace::{Workspace, items},
};

/// Zeros of at least this length, at a multiple of it, are left out of a file that had holes.
const HOLE_BYTES: usize = 4096;

/// Bytes of the line before a part of a file with holes.
const MAX_EXTENT_BYTES: usize = 64;

/// Mode of a folder until everything is in it.
const OPEN_FOLDER: Mode = Mode::RWXU;

/// What the entries so far have left to do.
struct Restore<'a> {
    workspace: &'a Workspace,
    /// The folder that the entry before was made in, with its path.
    parent: Option<(Vec<u8>, OwnedFd)>,
    folders: Vec<Entry>,
    links: Vec<(EntryPath, EntryPath)>,
    restored: TreeRestored,
}

fn cut(why: &str) -> Refusal {
    refusal(RefusalCategory::Invalid, format!("the snapshot: {why}"))
}

/// Makes the workspace what the stream says. Where that fails, it is of no use until the next try.
pub(crate) async fn restore(workspace: &Workspace, input: mpsc::Receiver<Input>) -> Result<TreeRestored, Refusal> {
    clear(workspace).await?;
    let mut stream = Stream::new(input);
    let (folders, links) = (Vec::new(), Vec::new());
    let mut restore = Restore { workspace, parent: None, folders, links, restored: TreeRestored::default() };
    while let Some(line) = stream.line(MAX_LINE_BYTES).await.map_err(cut)? {
        let entry: Entry = serde_json::from_slice(&line).map_err(|error| cut(&error.to_string()))?;
        restore.make(entry, &mut stream).await?;
        restore.restored.entries += 1;
        if restore.restored.entries.is_multiple_of(SLICE_ENTRIES as u64) {
            yield_now().await;
        }
    }
    restore.finish().await
}

/// Removes everything that is in the workspace.
async fn clear(workspace: &Workspace) -> Result<(), Refusal> {
    let failed = |error| io_refusal("the workspace", error);
    let top = workspace.open_exactly(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    for item in items(&top).map_err(failed)? {
        if item.kind == FileType::Directory {
            // One that its owner may not write to cannot be emptied. Whatever is in its place meanwhile is the sandbox's own.
            let _ = chmodat(&top, &item.name, OPEN_FOLDER, AtFlags::empty());
        }
        remove(top.as_fd(), &item.name).await?;
    }
    Ok(())
}

/// Removes whatever has a name.
async fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Refusal> {
    let what = name.to_string_lossy();
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => remove_folder(parent, &name.to_owned(), 0, &what, true).await,
        Err(error) => Err(io_refusal(&what, error)),
    }
}

/// Makes something with a name. A program of the sandbox may have made something of that name since everything was removed: the
/// snapshot stands over it.
async fn over<T>(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    what: &str,
    make: impl Fn() -> Result<T, Errno>,
) -> Result<T, Refusal> {
    let made = match make() {
        Err(Errno::EXIST) => {
            remove(parent, name).await?;
            make()
        }
        made => made,
    };
    made.map_err(|error| io_refusal(what, error))
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn name_of(path: &EntryPath) -> &OsStr {
    let bytes = path.as_bytes();
    let start = path.parent().map_or(0, |parent| parent.len() + 1);
    OsStr::from_bytes(&bytes[start..])
}

/// The times of something that was changed last at this time.
fn times(modified_ns: i64) -> Timestamps {
    let (seconds, nanoseconds) = (modified_ns.div_euclid(NANOSECONDS), modified_ns.rem_euclid(NANOSECONDS));
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}

impl Restore<'_> {
    /// Makes one entry.
    async fn make(&mut self, entry: Entry, stream: &mut Stream) -> Result<(), Refusal> {
        let what = entry.path.to_string();
        let failed = |error| io_refusal(&what, error);
        let mode = Mode::from_bits_retain(entry.mode & 0o7777);
        match &entry.kind {
            EntryKind::Directory => {
                let parent = self.parent_of(&entry.path).map_err(failed)?;
                let name = name_of(&entry.path);
                over(parent, name, &what, || mkdirat(parent, name, OPEN_FOLDER)).await?;
                self.folders.push(entry);
            }
            EntryKind::File { size, sparse, .. } => {
                let parent = self.parent_of(&entry.path).map_err(failed)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let name = name_of(&entry.path);
                let file = over(parent, name, &what, || openat(parent, name, flags, Mode::RUSR | Mode::WUSR)).await?;
                let file = File::from(file);
                fill(&file, *size, *sparse, stream, &what).await?;
                fchmod(&file, mode).map_err(failed)?;
                futimens(&file, &times(entry.modified_ns)).map_err(failed)?;
                self.restored.bytes += size;
            }
            EntryKind::Symlink { target } => {
                let parent = self.parent_of(&entry.path).map_err(failed)?;
                let name = name_of(&entry.path);
                over(parent, name, &what, || symlinkat(OsStr::from_bytes(target), parent, name)).await?;
                utimensat(parent, name, &times(entry.modified_ns), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            EntryKind::HardLink { to } => self.links.push((entry.path.clone(), to.clone())),
        }
        Ok(())
    }

    /// The folder that something is in; it is made already.
    fn parent_of(&mut self, path: &EntryPath) -> Result<BorrowedFd<'_>, Errno> {
        let wanted = path.parent().unwrap_or_default();
        if self.parent.as_ref().is_none_or(|(path, _)| path != wanted) {
            let folder = self.workspace.open_exactly(path_of(wanted), OFlags::PATH | OFlags::DIRECTORY)?;
            self.parent = Some((wanted.to_vec(), folder));
        }
        self.parent.as_ref().map(|(_, folder)| folder.as_fd()).ok_or(Errno::NOENT)
    }

    /// Makes the links, and gives the folders their modes and times.
    async fn finish(mut self) -> Result<TreeRestored, Refusal> {
        for (path, to) in std::mem::take(&mut self.links) {
            let what = path.to_string();
            let failed = |error| io_refusal(&what, error);
            let from =
                self.workspace.open_exactly(path_of(to.parent().unwrap_or_default()), OFlags::PATH | OFlags::DIRECTORY);
            let from = from.map_err(failed)?;
            let name: OsString = name_of(&to).to_owned();
            let parent = self.parent_of(&path).map_err(failed)?;
            let link = name_of(&path);
            over(parent, link, &what, || linkat(&from, &name, parent, link, AtFlags::empty())).await?;
        }
        let mut seen = 0_usize;
        while let Some(folder) = self.folders.pop() {
            let what = folder.path.to_string();
            let failed = |error| io_refusal(&what, error);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = self.workspace.open_exactly(path_of(folder.path.as_bytes()), flags).map_err(failed)?;
            futimens(&opened, &times(folder.modified_ns)).map_err(failed)?;
            fchmod(&opened, Mode::from_bits_retain(folder.mode & 0o7777)).map_err(failed)?;
            seen += 1;
            if seen.is_multiple_of(SLICE_ENTRIES) {
                yield_now().await;
            }
        }
        Ok(self.restored)
    }
}

/// Writes a file's bytes. Of one that had holes, they come in parts, and runs of zeros are left out.
async fn fill(file: &File, size: u64, sparse: bool, stream: &mut Stream, what: &str) -> Result<(), Refusal> {
    if !sparse {
        return write(file, 0..size, false, stream, what).await;
    }
    let mut at = 0;
    while at < size {
        let line = stream.line(MAX_EXTENT_BYTES).await.map_err(cut)?.ok_or_else(|| cut("it ends within a file"))?;
        let extent: Extent = serde_json::from_slice(&line).map_err(|error| cut(&error.to_string()))?;
        let (Extent::Data(bytes) | Extent::Hole(bytes)) = extent;
        if bytes == 0 || bytes > size - at {
            return Err(cut("a part of a file is not within it"));
        }
        if matches!(extent, Extent::Data(_)) {
            write(file, at..at + bytes, true, stream, what).await?;
        }
        at += bytes;
    }
    ftruncate(file, size).map_err(|error| io_refusal(what, error))
}

/// Writes the bytes that come next to a place of a file; without zeros, where they are to be holes.
async fn write(file: &File, place: Range<u64>, sparse: bool, stream: &mut Stream, what: &str) -> Result<(), Refusal> {
    let failed = |error: std::io::Error| io_refusal(what, Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let mut at = place.start;
    while at < place.end {
        let most = SLICE_BYTES.min(usize::try_from(place.end - at).unwrap_or(SLICE_BYTES));
        let bytes = stream.some(most).await.ok_or_else(|| cut("it ends within a file"))?;
        if sparse {
            // Pieces end where the file's blocks do.
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let left = HOLE_BYTES - usize::try_from(at % HOLE_BYTES as u64).unwrap_or(0);
                let (block, behind) = rest.split_at(left.min(rest.len()));
                if block.iter().any(|byte| *byte != 0) {
                    file.write_all_at(block, at).map_err(failed)?;
                }
                at += block.len() as u64;
                rest = behind;
            }
        } else {
            file.write_all_at(&bytes, at).map_err(failed)?;
            at += bytes.len() as u64;
        }
        yield_now().await;
    }
    Ok(())
}
