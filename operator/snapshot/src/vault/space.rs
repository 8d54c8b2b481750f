//! Room on the file system of a folder: snapshots never take the last of it, for the database may be there too.

use std::path::Path;

use tokio::task::spawn_blocking;

use super::{Vault, VaultError};
use crate::limits::MIN_FREE_BYTES;

/// A file system keeps this part of itself free where [`MIN_FREE_BYTES`] is more.
const FREE_PART: u64 = 20;

impl Vault {
    /// Whether there is room for more.
    pub(super) async fn check_room(&self) -> Result<(), VaultError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        match spawn_blocking(move || room(&folder)).await? {
            Some((free, all)) if !is_enough(free, all) => Err(VaultError::Full(free)),
            // A file system that does not say is one to try.
            _ => Ok(()),
        }
    }
}

fn room(folder: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some((bytes(found.f_bavail), bytes(found.f_blocks)))
}

fn is_enough(free: u64, all: u64) -> bool {
    free >= MIN_FREE_BYTES.min(all / FREE_PART)
}

#[cfg(test)]
mod tests {
    use super::is_enough;

    #[test]
    fn the_last_part_of_a_file_system_stays_free() {
        const GIB: u64 = 1 << 30;
        assert!(is_enough(2 * GIB, 1000 * GIB) && !is_enough(2 * GIB - 1, 1000 * GIB));
        assert!(is_enough(GIB, 20 * GIB) && !is_enough(GIB - 1, 20 * GIB));
    }
}
