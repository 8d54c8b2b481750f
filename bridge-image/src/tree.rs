//! The workspace as a snapshot needs it: listed with what tells a change, read, and made again.
//!
//! Every path is resolved by the kernel beneath the workspace and through no link at all (`openat2`): whatever a program of the
//! sandbox renames meanwhile, nothing else is read or written.

mod list;
mod read;
mod restore;
mod rules;

pub(crate) use self::{list::list, read::read, restore::restore};

use ash_protocol::tree::Stamp;
use rustix::fs::Stat;

const NANOSECONDS: i64 = 1_000_000_000;

/// What tells a change of a file.
fn stamp(status: &Stat) -> Stamp {
    let nanoseconds = i64::try_from(status.st_ctime_nsec).unwrap_or(0);
    Stamp { inode: status.st_ino, changed_ns: status.st_ctime.saturating_mul(NANOSECONDS).saturating_add(nanoseconds) }
}

/// When the content last changed, in nanoseconds since 1970.
fn modified_ns(status: &Stat) -> i64 {
    let nanoseconds = i64::try_from(status.st_mtime_nsec).unwrap_or(0);
    status.st_mtime.saturating_mul(NANOSECONDS).saturating_add(nanoseconds)
}
