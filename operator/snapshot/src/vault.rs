//! Where snapshots are kept: a folder or an S3 bucket, one space for each tenant.
//!
//! `SPACE/segments/AB/DIGEST` and `SPACE/manifests/SESSION/DIGEST`. What is written never changes: its name is its digest, so
//! that writing it twice is writing it once, and reading it checks it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use uuid::Uuid;

use crate::{
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
    /// The snapshots in this storage.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// Whether a segment is there and stays there for long enough to be referred to: one that nothing may have needed for a
    /// while is written again, or a collection could take it from under a snapshot that is being taken.
    pub async fn has(&self, space: &str, segment: &Segment, now: Timestamp) -> Result<bool, VaultError> {
        match self.objects.head(&of_segment(space, segment.digest)).await {
            Ok(found) => Ok(age(&found, now) < GRACE / 2),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a packed segment.
    pub async fn put(&self, space: &str, segment: &Segment, packed: Bytes) -> Result<(), VaultError> {
        self.objects.put(&of_segment(space, segment.digest), packed.into()).await?;
        Ok(())
    }

    /// The bytes of a segment, which were checked.
    pub async fn get(&self, space: &str, segment: &Segment) -> Result<Bytes, VaultError> {
        let packed = self.objects.get(&of_segment(space, segment.digest)).await?.bytes().await?;
        Ok(unpack(segment, &packed)?)
    }

    /// Keeps a manifest, whose segments are kept already; its name.
    pub async fn put_manifest(&self, space: &str, session: Uuid, manifest: &Manifest) -> Result<Digest, VaultError> {
        let (digest, bytes) = manifest.encode()?;
        self.objects.put(&of_manifest(space, session, digest), bytes.into()).await?;
        Ok(digest)
    }

    /// A manifest, which was checked.
    pub async fn manifest(&self, space: &str, session: Uuid, digest: Digest) -> Result<Manifest, VaultError> {
        let bytes = self.objects.get(&of_manifest(space, session, digest)).await?.bytes().await?;
        Ok(Manifest::decode(digest, &bytes)?)
    }

    /// Removes what no manifest needs: manifests that are not among `manifests`, and segments that none of these has.
    ///
    /// It is safe against snapshots that are being taken, and against backups, because nothing is removed that was written in
    /// the last [`GRACE`]: a snapshot writes its segments first, and one that is older is written again before it is referred to
    /// ([`has`](Self::has)). A manifest among `manifests` that cannot be read stops it: what it needs is not known.
    pub async fn collect(
        &self,
        space: &str,
        manifests: &[(Uuid, Digest)],
        now: Timestamp,
    ) -> Result<Collected, VaultError> {
        let mut needed = HashSet::new();
        for (session, digest) in manifests {
            let manifest = self.manifest(space, *session, *digest).await?;
            needed.extend(manifest.segments.iter().map(|segment| of_segment(space, segment.digest)));
        }
        needed.extend(manifests.iter().map(|(session, digest)| of_manifest(space, *session, *digest)));
        let mut listed = self.objects.list(Some(&Path::from_iter([space])));
        let mut collected = Collected::default();
        let mut unneeded = Vec::new();
        while let Some(object) = listed.try_next().await? {
            if needed.contains(&object.location) || age(&object, now) < GRACE {
                collected.kept += 1;
            } else {
                collected.removed += 1;
                collected.removed_bytes += object.size;
                unneeded.push(object.location);
            }
        }
        let remove = |path: Path| async move {
            match self.objects.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(VaultError::from(error)),
            }
        };
        futures::stream::iter(unneeded).map(remove).buffer_unordered(COLLECT_AT_ONCE).try_collect::<()>().await?;
        Ok(collected)
    }
}

fn of_segment(space: &str, digest: Digest) -> Path {
    let name = digest.to_string();
    Path::from_iter([space, "segments", &name[..2], &name])
}

fn of_manifest(space: &str, session: Uuid, digest: Digest) -> Path {
    Path::from_iter([space, "manifests", &session.to_string(), &digest.to_string()])
}

fn age(object: &object_store::ObjectMeta, now: Timestamp) -> Duration {
    let written = object.last_modified.timestamp_millis();
    Duration::from_millis(u64::try_from(now.as_millisecond().saturating_sub(written)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use jiff::{SignedDuration, Timestamp};
    use object_store::{ObjectStoreExt as _, local::LocalFileSystem};
    use uuid::Uuid;

    use super::{Vault, VaultError, of_manifest, of_segment};
    use crate::{Content, Entry, EntryKind, EntryPath, Manifest, Segment, Stamp, limits::GRACE, packed::pack};

    struct Kept {
        _folder: tempfile::TempDir,
        vault: Vault,
    }

    impl Kept {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let objects = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
            Self { vault: Vault::new(Arc::new(objects)), _folder: folder }
        }

        async fn put(&self, space: &str, bytes: &[u8]) -> Segment {
            let (segment, packed) = pack(bytes);
            self.vault.put(space, &segment, packed).await.unwrap();
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
        let digest = kept.vault.put_manifest("tenant", session, &manifest(&[segment])).await.unwrap();
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
        let old = kept.vault.put_manifest("tenant", session, &manifest(&[one, three])).await.unwrap();
        let new = kept.vault.put_manifest("tenant", session, &manifest(&[one, two])).await.unwrap();
        let now = Timestamp::now();
        let collected = kept.vault.collect("tenant", &[(session, new)], now).await.unwrap();
        assert_eq!((collected.removed, collected.kept), (0, 5), "all of it is young");
        let later = now + SignedDuration::try_from(GRACE + Duration::from_secs(60)).unwrap();
        // What a manifest that cannot be read needs is not known: nothing goes.
        assert!(kept.vault.collect("tenant", &[(session, new), (session, one.digest)], later).await.is_err());
        assert!(kept.vault.manifest("tenant", session, old).await.is_ok());
        let collected = kept.vault.collect("tenant", &[(session, new)], later).await.unwrap();
        assert_eq!((collected.removed, collected.kept), (2, 3));
        assert!(kept.vault.get("tenant", &one).await.is_ok() && kept.vault.get("tenant", &two).await.is_ok());
        assert!(matches!(kept.vault.get("tenant", &three).await, Err(VaultError::Missing(_))));
        assert!(kept.vault.get("neighbour", &elsewhere).await.is_ok());
        // One that may go soon is not referred to without being written again.
        assert!(!kept.vault.has("tenant", &one, later).await.unwrap());
        assert!(kept.vault.has("tenant", &one, now).await.unwrap());
    }
}
