//! Snapshots of a workspace.
//!
//! A bridge lists a workspace ([`Entry`]); the host decides what it has to read ([`plan`]), computes every digest itself, and
//! keeps content in *segments*: a run of small files, or a piece of a large one. A segment has the digest of its bytes as its
//! name, so that it is stored once however many snapshots need it. A [`Manifest`] says which tree they make. A [`Vault`] keeps
//! both.

mod cut;
mod digest;
mod entry;
mod limits;
mod manifest;
mod packed;
mod plan;
mod vault;

pub use cut::Cutter;
pub use digest::{Digest, InvalidDigest};
pub use entry::{Entry, EntryKind, EntryPath, InvalidEntryPath, Stamp};
pub use limits::*;
pub use manifest::{Content, Manifest, ManifestError, Note, NoteKind, Segment, Span};
pub use packed::{Damaged, pack, unpack};
pub use plan::{Plan, Planned, plan};
pub use vault::{Collected, Vault, VaultError};
