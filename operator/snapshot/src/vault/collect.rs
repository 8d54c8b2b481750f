//! Removes what no snapshot needs any more.

use std::{collections::HashSet, path::PathBuf};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::{ObjectStoreExt as _, path::Path};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::{Vault, VaultError, age, of_manifest};
use crate::{
    digest::Digest,
    limits::{COLLECT_AT_ONCE, DAMAGE_CONFIRMED, GRACE, MAX_MANIFEST_BYTES, REMEMBERED_DAMAGE, UNFINISHED},
    manifest::Manifest,
};

/// Says whose storage it is.
const INSTALLATION: &str = "ash-installation";

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects that nothing needed, and that are gone.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Objects that are kept.
    pub kept: u64,
}

/// What has to stay.
#[derive(Default)]
struct Needed {
    segments: HashSet<Digest>,
    manifests: HashSet<Path>,
}

impl Vault {
    /// Makes the storage that of an installation, where it is nobody's: only its own may collect what is in it.
    ///
    /// # Errors
    /// [`VaultError::Foreign`] where it is another's.
    pub async fn belongs_to(&self, installation: Uuid) -> Result<(), VaultError> {
        let path = Path::from(INSTALLATION);
        if self.head(&path).await?.is_none() {
            self.objects.put(&path, installation.to_string().into_bytes().into()).await?;
        }
        let said = self.objects.get(&path).await?.bytes().await?;
        let said = std::str::from_utf8(&said).ok().and_then(|text| Uuid::parse_str(text.trim()).ok());
        match said {
            Some(other) if other != installation => Err(VaultError::Foreign(other)),
            Some(_) => Ok(()),
            None => Err(VaultError::Unavailable(format!("{INSTALLATION} says nothing that can be read"))),
        }
    }

    /// Removes what no manifest needs: manifests that are not among `manifests`, and segments that none of these has.
    ///
    /// It is safe against snapshots that are being taken, and against backups, because nothing is removed that was written in
    /// the last [`GRACE`]: a snapshot writes its segments first, and one that is older than half of it is written again, under
    /// another name, before it is referred to ([`look`](Self::look)). `manifests` has to be read before this is called.
    ///
    /// # Errors
    /// Where one of the manifests cannot be read: what it needs is not known. One that was found damaged and still is
    /// [`DAMAGE_CONFIRMED`] later needs nothing.
    pub async fn collect(
        &self,
        space: &str,
        manifests: &[(Uuid, Digest)],
        now: Timestamp,
    ) -> Result<Collected, VaultError> {
        let needed = self.needed(space, manifests, now).await?;
        let mut listed = self.objects.list(Some(&Path::from_iter([space])));
        let mut collected = Collected::default();
        let mut unneeded = Vec::new();
        while let Some(object) = listed.try_next().await? {
            if age(&object, now) < GRACE || needed.has(&object.location) {
                collected.kept += 1;
            } else {
                collected.removed += 1;
                collected.removed_bytes += object.size;
                unneeded.push(object.location);
            }
        }
        let remove = |path: Path| async move { self.remove(&path).await };
        futures::stream::iter(unneeded).map(remove).buffer_unordered(COLLECT_AT_ONCE).try_collect::<()>().await?;
        Ok(collected)
    }

    /// Removes what a process that was killed had begun to write to a folder: nobody lists it.
    pub async fn remove_unfinished(&self) -> Result<(), VaultError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        Ok(spawn_blocking(move || remove_unfinished(folder)).await?)
    }

    async fn needed(&self, space: &str, manifests: &[(Uuid, Digest)], now: Timestamp) -> Result<Needed, VaultError> {
        let mut needed = Needed::default();
        let decode = |digest, bytes: &[u8]| Manifest::decode_segments(digest, bytes, MAX_MANIFEST_BYTES);
        for (session, digest) in manifests {
            match self.decoded(space, *session, *digest, decode).await {
                Ok(segments) => {
                    self.damage().manifests.remove(&(*session, *digest));
                    needed.segments.extend(segments.iter().map(|segment| segment.digest));
                }
                // One that is not there has nothing that could be restored.
                Err(VaultError::Missing(_)) => {}
                Err(error) if error.is_loss() && self.is_confirmed(*session, *digest, now) => {}
                Err(error) => return Err(error),
            }
            needed.manifests.insert(of_manifest(space, *session, *digest));
        }
        Ok(needed)
    }

    /// Whether a manifest that is damaged was so for long enough; notes it where it was not known.
    fn is_confirmed(&self, session: Uuid, digest: Digest, now: Timestamp) -> bool {
        let mut damage = self.damage();
        if damage.manifests.len() >= REMEMBERED_DAMAGE {
            damage.manifests.clear();
        }
        let since = *damage.manifests.entry((session, digest)).or_insert(now);
        let known = now.as_millisecond().saturating_sub(since.as_millisecond());
        u128::try_from(known).is_ok_and(|known| known >= DAMAGE_CONFIRMED.as_millis())
    }
}

fn remove_unfinished(folder: PathBuf) {
    let mut open = vec![folder];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(status) = entry.metadata() else { continue };
            // The storage calls a file so until it is whole; no name of ours has this sign.
            let is_unfinished = entry.file_name().to_string_lossy().contains('#');
            let is_old = status.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= UNFINISHED));
            if status.is_dir() {
                open.push(entry.path());
            } else if is_unfinished && is_old {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Needed {
    /// Whether something is needed: segments by their digest, manifests by their whole path, and whatever is not ours.
    fn has(&self, path: &Path) -> bool {
        let parts: Vec<_> = path.parts().skip(1).collect();
        let is_needed = |digest: &str| digest.parse().map_or(true, |digest| self.segments.contains(&digest));
        match parts.as_slice() {
            [kind, _, digest] if kind.as_ref() == "segments" => is_needed(digest.as_ref()),
            [kind, digest, _] if kind.as_ref() == "again" => is_needed(digest.as_ref()),
            [kind, ..] if kind.as_ref() == "manifests" => self.manifests.contains(path),
            _ => true,
        }
    }
}
