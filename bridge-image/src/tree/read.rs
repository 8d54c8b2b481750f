//! Reads files of the workspace, no more of each than was listed.

use std::{ffi::OsStr, fs::File, io::Read as _, os::unix::ffi::OsStrExt as _, path::Path};

use ash_protocol::{
    frame::DATA_FILE_END,
    message::{Refusal, RefusalCategory, TreeRead},
    tree::{ListedFile, MAX_READ_FILES, NoteKind},
};
use bytes::Bytes;
use rustix::{
    fs::{FileType, OFlags, fstat},
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
    let mut file = File::from(opened);
    let mut left = listed.size;
    let mut failed = false;
    while left > 0 {
        let mut bytes = vec![0; SLICE_BYTES.min(usize::try_from(left).unwrap_or(SLICE_BYTES))];
        let count = file.read(&mut bytes).unwrap_or_else(|_| {
            failed = true;
            0
        });
        if count == 0 {
            break;
        }
        bytes.truncate(count);
        left -= count as u64;
        let end = if left == 0 { DATA_FILE_END } else { 0 };
        caller.data_with_end(0, end, bytes.into()).await;
        yield_now().await;
    }
    if left > 0 || listed.size == 0 {
        caller.data_with_end(0, DATA_FILE_END, Bytes::new()).await;
    }
    let is_same = fstat(&file).is_ok_and(|after| stamp(&after) == listed.stamp);
    (failed || left > 0 || !is_same).then_some(NoteKind::Changed)
}
