//! What a host is told of a workspace that it lists, reads and makes again.

use serde::{Deserialize, Serialize};

use crate::tree::{MAX_NOTES, Note, NoteKind};

/// The answer to [`super::Request::ListTree`], after the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeListed {
    /// How many entries were listed.
    pub entries: u64,
    /// How many were left out because `.ashignore`, or the rules that hold without one, say so; what is in a folder that is
    /// left out is not counted.
    pub ignored: u64,
    /// What else is not in the list.
    #[serde(flatten)]
    pub notes: Notes,
}

/// The answer to [`super::Request::ReadTree`], after the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeRead {
    /// What happened to files that were not read as they were listed: the place of each in the request, in order. No data was
    /// sent of those that are gone or cannot be read.
    pub outcomes: Vec<(u32, NoteKind)>,
}

/// The answer to [`super::Request::RestoreTree`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeRestored {
    /// How many entries were made.
    pub entries: u64,
    /// The bytes of their files.
    pub bytes: u64,
}

/// Notes, within a bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notes {
    /// The first [`MAX_NOTES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// How many there are beyond them.
    #[serde(default)]
    pub further_notes: u64,
}

impl Notes {
    /// Keeps a note, or counts it.
    pub fn add(&mut self, note: Note) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(note);
        } else {
            self.further_notes = self.further_notes.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::{Value, json};

    use super::{Notes, TreeListed, TreeRead, TreeRestored};
    use crate::{
        message::Request,
        tree::{Entry, EntryKind, EntryPath, Extent, ListedFile, MAX_NOTES, Note, NoteKind, Stamp},
    };

    fn path(text: &[u8]) -> EntryPath {
        EntryPath::new(text).unwrap()
    }

    /// What version 1.2 says, letter by letter: a sandbox that was started before an upgrade goes on saying it.
    #[test]
    fn what_crosses_the_wire_stays_as_it_was() {
        #[allow(clippy::needless_pass_by_value, reason = "it reads as a table")]
        fn frozen<T: Serialize + DeserializeOwned>(message: &T, expected: Value) {
            assert_eq!(serde_json::to_value(message).unwrap(), expected);
            let back: T = serde_json::from_value(expected.clone()).unwrap();
            assert_eq!(serde_json::to_value(&back).unwrap(), expected);
        }
        let stamp = Stamp { inode: 7, changed_ns: -1 };
        frozen(&Request::ListTree { limit: 9 }, json!({"listTree": {"limit": 9}}));
        let files = vec![ListedFile { path: path(b"a/b"), size: 3, stamp }];
        frozen(
            &Request::ReadTree { files },
            json!({"readTree": {"files": [{"path": "a/b", "size": 3, "stamp": {"inode": 7, "changedNs": -1}}]}}),
        );
        frozen(&Request::RestoreTree {}, json!({"restoreTree": {}}));
        frozen(&Request::Cancel { request: 4 }, json!({"cancel": {"request": 4}}));
        let notes = Notes { notes: vec![Note { path: path(b"s"), note: NoteKind::Special }], further_notes: 2 };
        frozen(
            &TreeListed { entries: 5, ignored: 1, notes },
            json!({"entries": 5, "ignored": 1, "notes": [{"path": "s", "note": "special"}], "furtherNotes": 2}),
        );
        frozen(&TreeRead { outcomes: vec![(3, NoteKind::Gone)] }, json!({"outcomes": [[3, "gone"]]}));
        frozen(&TreeRestored { entries: 2, bytes: 8 }, json!({"entries": 2, "bytes": 8}));
        let entry = |kind| Entry { path: path(b"e"), mode: 0o640, modified_ns: 5, kind };
        let head = json!({"path": "e", "mode": 0o640, "modifiedNs": 5});
        let with = |more: Value| {
            let mut all = head.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        frozen(&entry(EntryKind::Directory), with(json!({"kind": "directory"})));
        frozen(
            &entry(EntryKind::File { size: 1, stamp, sparse: true }),
            with(json!({"kind": "file", "size": 1, "stamp": {"inode": 7, "changedNs": -1}, "sparse": true})),
        );
        frozen(
            &entry(EntryKind::Symlink { target: vec![0xff] }),
            with(json!({"kind": "symlink", "target": {"base64": "/w=="}})),
        );
        frozen(&entry(EntryKind::HardLink { to: path(b"f") }), with(json!({"kind": "hardLink", "to": "f"})));
        frozen(&Extent::Data(3), json!({"data": 3}));
        frozen(&Extent::Hole(1 << 20), json!({"hole": 1_048_576}));
    }

    #[test]
    fn notes_beyond_the_bound_are_counted() {
        let mut notes = Notes::default();
        for _ in 0..MAX_NOTES + 3 {
            notes.add(Note { path: path(b"x"), note: NoteKind::Gone });
        }
        assert_eq!((notes.notes.len(), notes.further_notes), (MAX_NOTES, 3));
    }
}
