//! Lists the workspace.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    vec,
};

use ash_protocol::{
    message::{Refusal, RefusalCategory, TreeListed},
    tree::{Entry, EntryKind, EntryPath, Note, NoteKind},
};
use rustix::{
    fs::{AtFlags, FileType, OFlags, Stat, readlinkat, statat},
    io::Errno,
};
use tokio::task::yield_now;

use super::{
    modified_ns,
    rules::{self, Rules},
    stamp,
};
use crate::{
    shared::{Caller, refusal},
    work::{SLICE_BYTES, SLICE_ENTRIES, io_refusal},
    workspace::{Item, MAX_DEPTH, Workspace, items},
};

/// Names of files with several that are remembered, so that the others become links to the first; further ones are files of
/// their own in the snapshot.
const MAX_LINKED: usize = 100_000;

/// What the system counts a file's room in.
const BLOCK_BYTES: u64 = 512;

/// A file with less room than its size by this is one with holes.
const HOLE_BYTES: u64 = 4096;

/// A folder on the way to where the walk is.
struct Open {
    folder: OwnedFd,
    path: Vec<u8>,
    items: vec::IntoIter<Item>,
}

struct Walk {
    rules: Rules,
    open: Vec<Open>,
    linked: HashMap<(u64, u64), EntryPath>,
    listed: TreeListed,
}

/// Sends an entry for everything in the workspace that is not to be left out.
pub(crate) async fn list(workspace: &Workspace, limit: u64, caller: &Caller) -> Result<TreeListed, Refusal> {
    let failed = |error| io_refusal("the workspace", error);
    let folder = workspace.open_exactly(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let items = items(&folder).map_err(failed)?.into_iter();
    let open = vec![Open { folder, path: Vec::new(), items }];
    let (linked, listed) = (HashMap::new(), TreeListed::default());
    let mut walk = Walk { rules: own_rules(workspace), open, linked, listed };
    let mut lines = Vec::new();
    let mut seen = 0_usize;
    while let Some(entry) = walk.next() {
        seen += 1;
        if seen.is_multiple_of(SLICE_ENTRIES) {
            yield_now().await;
        }
        let Some(entry) = entry else { continue };
        if walk.listed.entries == limit {
            let why = format!("the workspace has more than {limit} entries: leave some out with {}", rules::FILE);
            return Err(refusal(RefusalCategory::Invalid, why));
        }
        walk.listed.entries += 1;
        // Our own types with string keys become JSON.
        let _ = serde_json::to_writer(&mut lines, &entry);
        lines.push(b'\n');
        if lines.len() >= SLICE_BYTES {
            caller.data(0, std::mem::take(&mut lines).into()).await;
        }
    }
    caller.data(0, lines.into()).await;
    caller.end_data();
    Ok(walk.listed)
}

/// The rules of the workspace's file; those that hold without one where it cannot be read.
fn own_rules(workspace: &Workspace) -> Rules {
    let mut text = Vec::new();
    if let Ok(file) = workspace.open_exactly(Path::new(rules::FILE), OFlags::RDONLY | OFlags::NONBLOCK) {
        // Nothing is waited for that a program of the sandbox put there in a file's place; what was read counts.
        let _ = File::from(file).take(rules::MAX_BYTES).read_to_end(&mut text);
    }
    Rules::new(&text)
}

impl Walk {
    /// The next entry; `Some(None)` where there is one that is not listed.
    #[expect(clippy::option_option, reason = "the end, a step without an entry, an entry")]
    fn next(&mut self) -> Option<Option<Entry>> {
        let item = loop {
            let open = self.open.last_mut()?;
            match open.items.next() {
                Some(item) => break item,
                None => self.open.pop(),
            };
        };
        Some(self.look(&item))
    }

    fn look(&mut self, item: &Item) -> Option<Entry> {
        let here = self.open.last()?;
        let mut path = Vec::with_capacity(here.path.len() + item.name.len() + 1);
        path.extend_from_slice(&here.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(item.name.as_bytes());
        if self.rules.leave_out(&path, item.kind == FileType::Directory) {
            self.listed.ignored += 1;
            return None;
        }
        let Ok(checked) = EntryPath::new(&path) else {
            // A note cannot have the path either: it names the folder.
            let folder = EntryPath::new(&here.path).ok();
            self.note(folder, NoteKind::TooDeep);
            return None;
        };
        let status = match statat(&here.folder, &item.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            // Gone since the folder was read: then it is not in the workspace.
            Err(Errno::NOENT) => return None,
            Err(_) => {
                self.note(Some(checked), NoteKind::Unreadable);
                return None;
            }
        };
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                self.enter(item, path, &checked);
                EntryKind::Directory
            }
            FileType::RegularFile => self.file(&checked, &status),
            FileType::Symlink => match readlinkat(&here.folder, &item.name, Vec::new()) {
                Ok(target) => EntryKind::Symlink { target: target.into_bytes() },
                Err(_) => return None,
            },
            _ => {
                self.note(Some(checked), NoteKind::Special);
                return None;
            }
        };
        Some(Entry { path: checked, mode: status.st_mode & 0o7777, modified_ns: modified_ns(&status), kind })
    }

    fn file(&mut self, path: &EntryPath, status: &Stat) -> EntryKind {
        let size = u64::try_from(status.st_size).unwrap_or(0);
        if status.st_nlink > 1 {
            let inode = (status.st_dev, status.st_ino);
            if let Some(first) = self.linked.get(&inode) {
                return EntryKind::HardLink { to: first.clone() };
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(inode, path.clone());
            }
        }
        let room = u64::try_from(status.st_blocks).unwrap_or(u64::MAX).saturating_mul(BLOCK_BYTES);
        EntryKind::File { size, stamp: stamp(status), sparse: room.saturating_add(HOLE_BYTES) <= size }
    }

    fn enter(&mut self, item: &Item, path: Vec<u8>, checked: &EntryPath) {
        if self.open.len() >= MAX_DEPTH {
            return self.note(Some(checked.clone()), NoteKind::TooDeep);
        }
        let opened = match self.open.last() {
            Some(here) => Workspace::open_in(&here.folder, &item.name, OFlags::RDONLY | OFlags::DIRECTORY),
            None => return,
        };
        match opened.and_then(|folder| Ok((items(&folder)?.into_iter(), folder))) {
            Ok((items, folder)) => self.open.push(Open { folder, path, items }),
            // It became something else, or went away: the next snapshot sees it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.note(Some(checked.clone()), NoteKind::Gone),
            Err(_) => self.note(Some(checked.clone()), NoteKind::Unreadable),
        }
    }

    fn note(&mut self, path: Option<EntryPath>, note: NoteKind) {
        match path {
            Some(path) => self.listed.notes.add(Note { path, note }),
            None => self.listed.notes.further_notes += 1,
        }
    }
}
