//! Reads files of the workspace, no more of each than was listed.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
};

use ash_protocol::{
    frame::DATA_FILE_END,
    message::{Refusal, RefusalCategory, TreeRead},
    tree::{ListedFile, MAX_READ_FILES, MIN_HOLE_BYTES, NoteKind},
};
use bytes::Bytes;
use rustix::{
    fs::{FileType, OFlags, SeekFrom, fstat, seek},
    io::Errno,
};
use tokio::task::yield_now;

use super::stamp;
use crate::{
    shared::{Caller, refusal},
    work::SLICE_BYTES,
    workspace::Workspace,
};

/// Sends the bytes of files, one after the other.
pub(crate) async fn read(workspace: &Workspace, files: &[ListedFile], caller: &Caller) -> Result<TreeRead, Refusal> {
    if files.len() > MAX_READ_FILES {
        let why = format!("{} files were asked for, more than {MAX_READ_FILES}", files.len());
        return Err(refusal(RefusalCategory::Invalid, why));
    }
    let mut answer = TreeRead::default();
    for (place, file) in files.iter().enumerate() {
        if let Some(outcome) = send(workspace, file, caller).await {
            answer.outcomes.push((u32::try_from(place).unwrap_or(u32::MAX), outcome));
        }
        yield_now().await;
    }
    caller.end_data();
    Ok(answer)
}

/// Sends one; what happened to it where it is not as it was listed.
async fn send(workspace: &Workspace, listed: &ListedFile, caller: &Caller) -> Option<NoteKind> {
    let path = Path::new(OsStr::from_bytes(listed.path.as_bytes()));
    // Opening a pipe or a device, which may be in its place now, must not wait.
    let opened = match workspace.open_exactly(path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(opened) => opened,
        Err(error) => {
            caller.data_with_end(0, DATA_FILE_END, Bytes::new()).await;
            return Some(match error {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => NoteKind::Gone,
                _ => NoteKind::Unreadable,
            });
        }
    };
    let before = fstat(&opened);
    if !before.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile) {
        caller.data_with_end(0, DATA_FILE_END, Bytes::new()).await;
        return Some(NoteKind::Gone);
    }
    let file = File::from(opened);
    let mut at = 0;
    // Where what can be read ends: looked for again behind it.
    let mut known = 0;
    let mut is_whole = true;
    while at < listed.size {
        if at >= known {
            match next(&file, at, listed.size) {
                Part::Hole(end) => {
                    caller.hole(end - at, if end == listed.size { DATA_FILE_END } else { 0 }).await;
                    at = end;
                    yield_now().await;
                    continue;
                }
                Part::Data(end) => known = end,
            }
        }
        let most = SLICE_BYTES.min(usize::try_from(known - at).unwrap_or(SLICE_BYTES));
        let mut bytes = vec![0; most];
        let count = file.read_at(&mut bytes, at).unwrap_or(0);
        if count == 0 {
            is_whole = false;
            break;
        }
        bytes.truncate(count);
        at += count as u64;
        caller.data_with_end(0, if at == listed.size { DATA_FILE_END } else { 0 }, bytes.into()).await;
        yield_now().await;
    }
    if at < listed.size || listed.size == 0 {
        caller.data_with_end(0, DATA_FILE_END, Bytes::new()).await;
    }
    let is_same = fstat(&file).is_ok_and(|after| stamp(&after) == listed.stamp);
    (!is_whole || !is_same).then_some(NoteKind::Changed)
}

/// What a file has next, with where that ends.
enum Part {
    Hole(u64),
    Data(u64),
}

/// Looks at a file from a place on. A short hole is data, which reads as zeros.
fn next(file: &File, at: u64, size: u64) -> Part {
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.min(size),
        // Nothing but a hole behind it.
        Err(Errno::NXIO) => size,
        Err(_) => return Part::Data(size),
    };
    if data - at >= MIN_HOLE_BYTES {
        return Part::Hole(data);
    }
    if data == size {
        return Part::Data(size);
    }
    match seek(file, SeekFrom::Hole(data)) {
        Ok(hole) if hole > at => Part::Data(hole.min(size)),
        _ => Part::Data(size),
    }
}
