//! Where snapshots are kept: a folder or an S3 bucket, one space for each tenant.
//!
//! `SPACE/segments/AB/DIGEST` and `SPACE/manifests/SESSION/DIGEST`. What is written never changes: its name is its digest, so
//! that writing it twice is writing it once, and reading it checks it. A segment that a collection may be removing is written
//! again under a name of its own, `SPACE/again/DIGEST/UUID`: no collection that is under way knows that one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, path::Path};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::{
    address,
    digest::Digest,
    limits::{COLLECT_AT_ONCE, GRACE},
    manifest::{Manifest, ManifestError, Segment},
    packed::{Damaged, unpack},
};

/// Why something was not kept or found.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The storage does not answer, or refuses. It is tried again later.
    #[error("the snapshot storage does not answer: {0}")]
    Unavailable(String),
    /// It is not there.
    #[error("{0} is not in the snapshot storage")]
    Missing(String),
    /// It is there, and damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// A manifest is of no use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<tokio::task::JoinError> for VaultError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<object_store::Error> for VaultError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => Self::Missing(path),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

/// The snapshots of all tenants.
#[derive(Debug, Clone)]
pub struct Vault {
    objects: Arc<dyn ObjectStore>,
}

/// Whether a segment is in the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is there and stays there for long enough to be referred to.
    Safe,
    /// It is there, and a collection may be about to remove it.
    Old,
    /// It is not there.
    Missing,
}

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

impl Vault {
    /// The snapshots at an address: `s3://BUCKET/PREFIX`, whose server and keys the variables that begin with `AWS_` name, or a
    /// folder of this machine.
    pub fn open(address: &str) -> Result<Self, VaultError> {
        Ok(Self::new(address::open(address)?))
    }

    /// The snapshots in a folder of this machine, which is made where it is not there.
    pub fn in_folder(folder: &std::path::Path) -> Result<Self, VaultError> {
        Ok(Self::new(address::in_folder(folder)?))
    }

    /// The snapshots in this storage.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// Whether a segment is there.
    pub async fn look(&self, space: &str, segment: &Segment, now: Timestamp) -> Result<Presence, VaultError> {
        let young = |found: &ObjectMeta| age(found, now) < GRACE / 2;
        let first = match self.objects.head(&of_segment(space, segment.digest)).await {
            Ok(found) if young(&found) => return Ok(Presence::Safe),
            Ok(_) => true,
            Err(object_store::Error::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !first {
            return Ok(Presence::Missing);
        }
        let again = self.again(space, segment.digest).await?;
        Ok(if again.iter().any(young) { Presence::Safe } else { Presence::Old })
    }

    /// Keeps a packed segment that is not there, or may go.
    pub async fn put(
        &self,
        space: &str,
        segment: &Segment,
        packed: Bytes,
        presence: Presence,
    ) -> Result<(), VaultError> {
        let path = match presence {
            Presence::Safe => return Ok(()),
            Presence::Missing => of_segment(space, segment.digest),
            Presence::Old => of_again(space, segment.digest).join(Uuid::new_v4().to_string()),
        };
        self.objects.put(&path, packed.into()).await?;
        Ok(())
    }

    /// The bytes of a segment, which were checked.
    pub async fn get(&self, space: &str, segment: &Segment) -> Result<Bytes, VaultError> {
        let first = self.read(&of_segment(space, segment.digest), segment).await;
        let Err(VaultError::Missing(_) | VaultError::Damaged(_)) = first else { return first };
        for again in self.again(space, segment.digest).await? {
            if let Ok(bytes) = self.read(&again.location, segment).await {
                return Ok(bytes);
            }
        }
        first
    }

    /// Lets go of a segment that is damaged, so that the next snapshot writes it again.
    pub async fn forget(&self, space: &str, segment: &Segment) -> Result<(), VaultError> {
        let again = self.again(space, segment.digest).await?.into_iter().map(|found| found.location);
        for path in std::iter::once(of_segment(space, segment.digest)).chain(again) {
            self.remove(&path).await?;
        }
        Ok(())
    }

    async fn read(&self, path: &Path, segment: &Segment) -> Result<Bytes, VaultError> {
        let packed = self.objects.get(path).await?.bytes().await?;
        let segment = *segment;
        Ok(spawn_blocking(move || unpack(&segment, &packed)).await??)
    }

    async fn again(&self, space: &str, digest: Digest) -> Result<Vec<ObjectMeta>, VaultError> {
        Ok(self.objects.list(Some(&of_again(space, digest))).try_collect().await?)
    }

    async fn remove(&self, path: &Path) -> Result<(), VaultError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a manifest, whose segments are kept already; its name.
    pub async fn put_manifest(&self, space: &str, session: Uuid, manifest: Manifest) -> Result<Digest, VaultError> {
        let (digest, bytes) = spawn_blocking(move || manifest.encode()).await??;
        self.objects.put(&of_manifest(space, session, digest), bytes.into()).await?;
        Ok(digest)
    }

    /// A manifest, which was checked.
    pub async fn manifest(&self, space: &str, session: Uuid, digest: Digest) -> Result<Manifest, VaultError> {
        let bytes = self.objects.get(&of_manifest(space, session, digest)).await?.bytes().await?;
        Ok(spawn_blocking(move || Manifest::decode(digest, &bytes)).await??)
    }

    /// Removes what no manifest needs: manifests that are not among `manifests`, and segments that none of these has.
    ///
    /// It is safe against snapshots that are being taken, and against backups, because nothing is removed that was written in
    /// the last [`GRACE`]: a snapshot writes its segments first, and one that is older than half of it is written again, under
    /// another name, before it is referred to ([`look`](Self::look)). `manifests` has to be read before this is called. One of
    /// them that cannot be read stops it: what it needs is not known.
    pub async fn collect(
        &self,
        space: &str,
        manifests: &[(Uuid, Digest)],
        now: Timestamp,
    ) -> Result<Collected, VaultError> {
        let mut needed = HashSet::new();
        for (session, digest) in manifests {
            match self.manifest(space, *session, *digest).await {
                Ok(manifest) => needed.extend(manifest.segments.iter().map(|segment| segment.digest.to_string())),
                // One that is not there has nothing that could be restored.
                Err(VaultError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        needed.extend(manifests.iter().map(|(session, digest)| of_manifest(space, *session, *digest).to_string()));
        let mut listed = self.objects.list(Some(&Path::from_iter([space])));
        let mut collected = Collected::default();
        let mut unneeded = Vec::new();
        while let Some(object) = listed.try_next().await? {
            if age(&object, now) < GRACE || is_needed(&object.location, &needed) {
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
}

/// Whether something is needed: segments by their digest, manifests by their whole path, and whatever is not ours.
fn is_needed(path: &Path, needed: &HashSet<String>) -> bool {
    let parts: Vec<_> = path.parts().skip(1).collect();
    match parts.as_slice() {
        [kind, _, digest] if kind.as_ref() == "segments" => needed.contains(digest.as_ref()),
        [kind, digest, _] if kind.as_ref() == "again" => needed.contains(digest.as_ref()),
        [kind, ..] if kind.as_ref() == "manifests" => needed.contains(path.as_ref()),
        _ => true,
    }
}

fn of_segment(space: &str, digest: Digest) -> Path {
    let name = digest.to_string();
    Path::from_iter([space, "segments", &name[..2], &name])
}

fn of_again(space: &str, digest: Digest) -> Path {
    Path::from_iter([space, "again", &digest.to_string()])
}

fn of_manifest(space: &str, session: Uuid, digest: Digest) -> Path {
    Path::from_iter([space, "manifests", &session.to_string(), &digest.to_string()])
}

fn age(object: &ObjectMeta, now: Timestamp) -> Duration {
    let written = object.last_modified.timestamp_millis();
    Duration::from_millis(u64::try_from(now.as_millisecond().saturating_sub(written)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use bytes::Bytes;
    use jiff::{SignedDuration, Timestamp};
    use object_store::ObjectStoreExt as _;
    use uuid::Uuid;

    use super::{Presence, Vault, VaultError, of_manifest, of_segment};
    use crate::{Content, Entry, EntryKind, EntryPath, Manifest, Segment, Stamp, limits::GRACE, packed::pack};

    struct Kept {
        _folder: tempfile::TempDir,
        vault: Vault,
    }

    impl Kept {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { vault: Vault::in_folder(&folder.path().join("snapshots")).unwrap(), _folder: folder }
        }

        async fn put(&self, space: &str, bytes: &[u8]) -> Segment {
            let (segment, packed) = pack(bytes);
            let presence = self.vault.look(space, &segment, Timestamp::now()).await.unwrap();
            self.vault.put(space, &segment, packed, presence).await.unwrap();
            segment
        }
    }

    fn manifest(segments: &[Segment]) -> Manifest {
        let entry = |(at, segment): (usize, &Segment)| Entry {
            path: EntryPath::new(format!("file{at:03}").as_bytes()).unwrap(),
            mode: 0o600,
            modified_ns: 0,
            kind: EntryKind::File { size: segment.size, stamp: Stamp { inode: 1, changed_ns: 1 }, sparse: false },
        };
        let content = |(at, segment): (usize, &Segment)| Content::Shared {
            segment: u32::try_from(at).unwrap(),
            offset: 0,
            size: segment.size,
        };
        let entries = segments.iter().enumerate().map(entry).collect();
        let contents = segments.iter().enumerate().map(content).collect();
        Manifest::new(None, Timestamp::now(), entries, contents, segments.to_vec(), Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn what_is_kept_is_found_and_damage_is_noticed() {
        let kept = Kept::new();
        let segment = kept.put("tenant", b"some bytes").await;
        assert_eq!(kept.vault.get("tenant", &segment).await.unwrap(), Bytes::from("some bytes"));
        assert!(matches!(kept.vault.get("other", &segment).await, Err(VaultError::Missing(_))), "spaces are apart");
        let session = Uuid::now_v7();
        let digest = kept.vault.put_manifest("tenant", session, manifest(&[segment])).await.unwrap();
        assert_eq!(
            kept.vault.manifest("tenant", session, digest).await.unwrap(),
            manifest_of(&kept, session, digest).await
        );
        // Half written, and with one bit changed.
        let path = of_segment("tenant", segment.digest);
        for damage in [&b""[..], b"\0some byte", b"\0some bytez", b"\x01some bytes", b"\x02some bytes"] {
            kept.vault.objects.put(&path, Bytes::copy_from_slice(damage).into()).await.unwrap();
            assert!(matches!(kept.vault.get("tenant", &segment).await, Err(VaultError::Damaged(_))), "{damage:?}");
        }
        let path = of_manifest("tenant", session, digest);
        kept.vault.objects.put(&path, Bytes::from_static(b"half").into()).await.unwrap();
        assert!(matches!(kept.vault.manifest("tenant", session, digest).await, Err(VaultError::Manifest(_))));
    }

    async fn manifest_of(kept: &Kept, session: Uuid, digest: crate::Digest) -> Manifest {
        kept.vault.manifest("tenant", session, digest).await.unwrap()
    }

    #[tokio::test]
    async fn a_collection_removes_what_nothing_needs_and_only_after_the_grace() {
        let kept = Kept::new();
        let (one, two, three) =
            (kept.put("tenant", b"one").await, kept.put("tenant", b"two").await, kept.put("tenant", b"three").await);
        let elsewhere = kept.put("neighbour", b"three").await;
        let session = Uuid::now_v7();
        let old = kept.vault.put_manifest("tenant", session, manifest(&[one, three])).await.unwrap();
        let new = kept.vault.put_manifest("tenant", session, manifest(&[one, two])).await.unwrap();
        let now = Timestamp::now();
        let collected = kept.vault.collect("tenant", &[(session, new)], now).await.unwrap();
        assert_eq!((collected.removed, collected.kept), (0, 5), "all of it is young");
        let later = now + SignedDuration::try_from(GRACE + Duration::from_secs(60)).unwrap();
        // What a manifest that cannot be read needs is not known: nothing goes.
        let broken = one.digest;
        kept.vault.objects.put(&of_manifest("tenant", session, broken), Bytes::from_static(b"x").into()).await.unwrap();
        assert!(kept.vault.collect("tenant", &[(session, new), (session, broken)], later).await.is_err());
        kept.vault.objects.delete(&of_manifest("tenant", session, broken)).await.unwrap();
        assert!(kept.vault.manifest("tenant", session, old).await.is_ok());
        let collected = kept.vault.collect("tenant", &[(session, new)], later).await.unwrap();
        assert_eq!((collected.removed, collected.kept), (2, 3));
        assert!(kept.vault.get("tenant", &one).await.is_ok() && kept.vault.get("tenant", &two).await.is_ok());
        assert!(matches!(kept.vault.get("tenant", &three).await, Err(VaultError::Missing(_))));
        assert!(kept.vault.get("neighbour", &elsewhere).await.is_ok());
        // One that may go soon is not referred to without being written again, and what was written again is not in the way of
        // a collection that knows the older one.
        assert_eq!(kept.vault.look("tenant", &one, now).await.unwrap(), Presence::Safe);
        assert_eq!(kept.vault.look("tenant", &one, later).await.unwrap(), Presence::Old);
        assert_eq!(kept.vault.look("tenant", &three, later).await.unwrap(), Presence::Missing);
        kept.vault.put("tenant", &one, pack(b"one").1, Presence::Old).await.unwrap();
        assert_eq!(kept.vault.look("tenant", &one, now).await.unwrap(), Presence::Safe);
        kept.vault.objects.delete(&of_segment("tenant", one.digest)).await.unwrap();
        assert_eq!(kept.vault.get("tenant", &one).await.unwrap(), Bytes::from_static(b"one"));
        kept.vault.collect("tenant", &[(session, new)], later).await.unwrap();
        assert_eq!(kept.vault.get("tenant", &one).await.unwrap(), Bytes::from_static(b"one"));
        kept.vault.forget("tenant", &one).await.unwrap();
        assert!(matches!(kept.vault.get("tenant", &one).await, Err(VaultError::Missing(_))));
    }
}
