//! Puts, gets, lists and deletes files of the workspace; puts a conversation's transcript back.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use ash_protocol::message::{FileEntry, FileList, FileRead, Refusal, RefusalCategory};
use bytes::Bytes;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, chmodat, fchmod, fstat, openat, renameat, statat, unlinkat},
    io::Errno,
};
use tokio::{sync::mpsc, task::yield_now};
use uuid::Uuid;

use crate::{
    claude::transcript,
    shared::{Caller, Input, refusal},
    work::{SLICE_BYTES, SLICE_ENTRIES, io_refusal},
    workspace::{MAX_DEPTH, Relative, Workspace, items, own_folder},
};

/// Mode of a file for which the host names none.
const FILE_MODE: u32 = 0o644;

/// Files that one listing may name, whatever the host asks.
const MAX_LISTED: u32 = 100_000;

/// A file that is written beside its place and moved there when it is whole; removed when it never is.
pub(crate) struct NewFile {
    folder: OwnedFd,
    name: OsString,
    file: Option<File>,
}

impl NewFile {
    /// Begins a file in a folder.
    pub(crate) fn create(folder: OwnedFd) -> Result<Self, Errno> {
        let name = OsString::from(format!(".ash-{}.new", Uuid::new_v4().simple()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, &name, flags, Mode::from_bits_retain(0o600))?;
        Ok(Self { folder, name, file: Some(file.into()) })
    }

    /// Appends to it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Moves it to its place, over what is there.
    pub(crate) fn finish(mut self, name: &OsString, mode: u32) -> Result<(), Errno> {
        if let Some(file) = &self.file {
            fchmod(file, Mode::from_bits_retain(mode & 0o777))?;
        }
        renameat(&self.folder, &self.name, &self.folder, name)?;
        self.file = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // The folder itself may be gone.
            let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

/// The next data of a request; `None` behind the last. A host that goes away aborts the task.
pub(crate) async fn next_data(input: &mut mpsc::Receiver<Input>, ended: &mut bool) -> Option<Bytes> {
    if *ended {
        return None;
    }
    let Input { bytes, last } = input.recv().await?;
    *ended = last;
    Some(bytes)
}

async fn fill(mut file: NewFile, what: &str, mut input: mpsc::Receiver<Input>) -> Result<NewFile, Refusal> {
    let mut ended = false;
    while let Some(bytes) = next_data(&mut input, &mut ended).await {
        for slice in bytes.chunks(SLICE_BYTES) {
            file.write(slice).map_err(|error| io_refusal(what, error))?;
            yield_now().await;
        }
    }
    Ok(file)
}

/// Writes a file, whole or not at all.
pub(crate) async fn put(
    workspace: &Workspace,
    path: &str,
    mode: Option<u32>,
    input: mpsc::Receiver<Input>,
) -> Result<(), Refusal> {
    let path = Relative::parse(path.as_bytes())?;
    let what = path.to_string();
    let failed = |error| io_refusal(&what, error);
    let file = NewFile::create(workspace.parent(&path, true)?).map_err(failed)?;
    let file = fill(file, &what, input).await?;
    file.finish(path.name(), mode.unwrap_or(FILE_MODE)).map_err(failed)
}

/// Writes a conversation's transcript to where Claude Code looks for it.
pub(crate) async fn restore_transcript(
    configuration: &Path,
    workspace: &Path,
    conversation: Uuid,
    input: mpsc::Receiver<Input>,
) -> Result<(), Refusal> {
    let what = "the transcript";
    let directory = std::fs::canonicalize(workspace).unwrap_or_else(|_| workspace.to_owned());
    let folder = transcript::folder(configuration, &directory);
    let place = transcript::file(&folder, conversation);
    let folder =
        own_folder(&folder).map_err(|error| io_refusal(what, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let failed = |error| io_refusal(what, error);
    let file = fill(NewFile::create(folder).map_err(failed)?, what, input).await?;
    file.finish(&place.file_name().unwrap_or_default().to_owned(), 0o600).map_err(failed)
}

/// Sends a file's bytes.
pub(crate) async fn get(workspace: &Workspace, path: &str, caller: &Caller) -> Result<FileRead, Refusal> {
    let path = Relative::parse(path.as_bytes())?;
    let what = path.to_string();
    let failed = |error| io_refusal(&what, error);
    // Opening a pipe or a device must not wait.
    let file = workspace.open_beneath(&path.path(), OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
    let status = fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(refusal(RefusalCategory::Invalid, format!("{what}: not a regular file")));
    }
    let mut file = File::from(file);
    let mut size = 0;
    loop {
        let mut bytes = vec![0; SLICE_BYTES];
        let count = file.read(&mut bytes).map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        if count == 0 {
            break;
        }
        bytes.truncate(count);
        size += count as u64;
        caller.data(0, bytes.into()).await;
        yield_now().await;
    }
    caller.end_data();
    Ok(FileRead { size, mode: status.st_mode & 0o7777 })
}

/// Walks a folder depth first, in the order of whole paths; links are not followed.
pub(crate) struct Walk<'a> {
    workspace: &'a Workspace,
    /// What comes next, the last first.
    waiting: Vec<(PathBuf, FileType, usize)>,
}

impl<'a> Walk<'a> {
    /// Begins at a folder; at all of the workspace where the path is empty.
    pub(crate) fn new(workspace: &'a Workspace, path: &Path) -> Result<Self, Errno> {
        let mut walk = Self { workspace, waiting: Vec::new() };
        walk.enter(path, 0)?;
        Ok(walk)
    }

    fn enter(&mut self, path: &Path, depth: usize) -> Result<(), Errno> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let folder = self.workspace.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let items = items(&folder)?;
        self.waiting.extend(items.into_iter().rev().map(|item| (path.join(item.name), item.kind, depth + 1)));
        Ok(())
    }

    /// The next entry. A folder that vanished meanwhile counts as empty.
    pub(crate) fn next(&mut self) -> Result<Option<(PathBuf, FileType)>, Errno> {
        let Some((path, kind, depth)) = self.waiting.pop() else { return Ok(None) };
        if kind == FileType::Directory {
            match self.enter(&path, depth) {
                Err(error) if !matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Err(error),
                _ => {}
            }
        }
        Ok(Some((path, kind)))
    }
}

/// Lists regular files.
pub(crate) async fn list(workspace: &Workspace, path: &str, limit: u32) -> Result<FileList, Refusal> {
    let start = match path.trim_matches('/') {
        "" | "." => PathBuf::new(),
        _ => Relative::parse(path.as_bytes())?.path(),
    };
    let failed = |error| io_refusal(&start.display().to_string(), error);
    let limit = limit.min(MAX_LISTED) as usize;
    let mut walk = Walk::new(workspace, &start).map_err(failed)?;
    let mut list = FileList { files: Vec::new(), truncated: false };
    let mut seen = 0_usize;
    while let Some((path, kind)) = walk.next().map_err(failed)? {
        seen += 1;
        if seen.is_multiple_of(SLICE_ENTRIES) {
            yield_now().await;
        }
        if kind != FileType::RegularFile {
            continue;
        }
        // Gone again since the folder was read.
        let Ok(file) = workspace.open_beneath(&path, OFlags::PATH | OFlags::NOFOLLOW) else { continue };
        let Ok(status) = fstat(&file) else { continue };
        if list.files.len() >= limit {
            list.truncated = true;
            break;
        }
        list.files.push(FileEntry {
            path: String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned(),
            size: u64::try_from(status.st_size).unwrap_or(0),
            modified_ms: modified_ms(&status),
        });
    }
    Ok(list)
}

fn modified_ms(status: &rustix::fs::Stat) -> i64 {
    let nanoseconds = i64::try_from(status.st_mtime_nsec).unwrap_or(0);
    status.st_mtime.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

/// Removes a file, or a folder with all that is in it.
pub(crate) async fn delete(workspace: &Workspace, path: &str) -> Result<(), Refusal> {
    let path = Relative::parse(path.as_bytes())?;
    let what = path.to_string();
    let failed = |error| io_refusal(&what, error);
    let parent = workspace.parent(&path, false)?;
    let status = statat(&parent, path.name(), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return unlinkat(&parent, path.name(), AtFlags::empty()).map_err(failed);
    }
    remove_folder(parent.as_fd(), path.name(), path.depth(), &what, false).await
}

/// Removes a folder with all that is in it; `forced`, also where its owner may not write to it.
pub(crate) async fn remove_folder(
    parent: BorrowedFd<'_>,
    name: &OsString,
    depth: usize,
    what: &str,
    forced: bool,
) -> Result<(), Refusal> {
    let failed = |error| io_refusal(what, error);
    // Folders that are being emptied, each with its parent's descriptor: nothing that is renamed meanwhile leads elsewhere.
    let mut open = vec![(opened(parent, name, forced).map_err(failed)?, name.clone())];
    let mut seen = 0_usize;
    while let Some((folder, _)) = open.last() {
        let mut deeper = None;
        for item in items(folder).map_err(failed)? {
            seen += 1;
            if seen.is_multiple_of(SLICE_ENTRIES) {
                yield_now().await;
            }
            if item.kind == FileType::Directory {
                match unlinkat(folder, &item.name, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        deeper = Some(item.name);
                        break;
                    }
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(failed(error)),
                }
            } else {
                match unlinkat(folder, &item.name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        if let Some(name) = deeper {
            if open.len() + depth > MAX_DEPTH {
                return Err(refusal(RefusalCategory::Invalid, format!("{what}: too many folders below each other")));
            }
            open.push((opened(folder.as_fd(), &name, forced).map_err(failed)?, name));
            continue;
        }
        let Some((_, name)) = open.pop() else { break };
        let above = open.last().map_or(parent, |(folder, _)| folder.as_fd());
        match unlinkat(above, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Opens a folder that is to be emptied. Forced, its owner may write to it from then on.
fn opened(parent: BorrowedFd<'_>, name: &OsString, forced: bool) -> Result<OwnedFd, Errno> {
    let folder = match open_folder(parent, name) {
        Err(Errno::ACCESS) if forced => {
            // What is in its place meanwhile is the sandbox's own, too.
            let _ = chmodat(parent, name, Mode::RWXU, AtFlags::empty());
            open_folder(parent, name)?
        }
        folder => folder?,
    };
    if forced {
        let _ = fchmod(&folder, Mode::RWXU);
    }
    Ok(folder)
}

fn open_folder(parent: impl AsFd, name: &OsString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}
