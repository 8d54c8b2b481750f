//! Snapshots of a workspace.
//!
//! A bridge lists a workspace ([`Entry`]); the host decides what it has to read ([`plan()`]), computes every digest itself, and
//! keeps content in *segments*: a run of small files, or a piece of a large one. A segment has the digest of its bytes as its
//! name, so that it is stored once however many snapshots need it. A [`Manifest`] says which tree they make. A [`Vault`] keeps
//! both.

mod address;
mod cut;
mod digest;
mod limits;
mod manifest;
mod packed;
mod plan;
mod vault;

pub use ash_protocol::tree::{
    Entry, EntryKind, EntryPath, Extent, InvalidEntryPath, ListedFile, MIN_HOLE_BYTES, Note, NoteKind, Stamp,
};
pub use cut::Cutter;
pub use digest::{Digest, InvalidDigest};
pub use limits::*;
pub use manifest::{Content, Hole, Manifest, ManifestError, Segment, Span};
pub use packed::{Damaged, NotUnpacked, pack, unpack};
pub use plan::{Plan, Planned, plan};
pub use vault::{Collected, Presence, Vault, VaultError};
