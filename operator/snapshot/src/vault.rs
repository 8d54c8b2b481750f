//! Where snapshots are kept: a folder or an S3 bucket, one space for each tenant.
//!
//! `SPACE/segments/AB/DIGEST` and `SPACE/manifests/SESSION/DIGEST`. What is written never changes: its name is its digest, so
//! that writing it twice is writing it once, and reading it checks it. A segment that is damaged, or that a collection may be
//! removing, is written again under a name of its own, `SPACE/again/DIGEST/UUID`: no collection that is under way knows that one.
//! Nothing is removed because it was read wrong: the storage may say something else in a minute.

mod collect;
mod space;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, path::Path};
use tokio::task::spawn_blocking;
use uuid::Uuid;

pub use self::collect::Collected;
use crate::{
    address,
    digest::Digest,
    limits::{COLLECT_AT_ONCE, GRACE, MAX_MANIFEST_BYTES, REMEMBERED_DAMAGE},
    manifest::{Manifest, ManifestError, Segment},
    packed::{Damaged, NotUnpacked, unpack},
};

/// Why something was not kept or found.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The storage does not answer, or refuses. It is tried again later.
    #[error("the snapshot storage does not answer: {0}")]
    Unavailable(String),
    /// The file system of the folder has not enough room left.
    #[error("the file system of the snapshots has {} MiB left: make room, or keep them elsewhere with --object-store", .0 >> 20)]
    Full(u64),
    /// It is not there.
    #[error("{0} is not in the snapshot storage")]
    Missing(String),
    /// It is there, and damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// It is there, and of another release.
    #[error("segment {0} was packed by a newer release: use one that knows it")]
    Newer(Digest),
    /// A manifest is of no use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Another installation keeps its snapshots here.
    #[error("the snapshot storage is that of installation {0}: name another prefix or folder with --object-store")]
    Foreign(Uuid),
}

impl VaultError {
    /// Whether the storage answered, and what it has is lost or damaged: another copy, or an earlier snapshot, is to be used.
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Damaged(_) => true,
            Self::Manifest(error) => !matches!(error, ManifestError::Form(_)),
            Self::Unavailable(_) | Self::Full(_) | Self::Newer(_) | Self::Foreign(_) => false,
        }
    }
}

impl From<NotUnpacked> for VaultError {
    fn from(error: NotUnpacked) -> Self {
        match error {
            NotUnpacked::Damaged(damaged) => damaged.into(),
            NotUnpacked::Newer(digest) => Self::Newer(digest),
        }
    }
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
    /// Where they are in a folder of this machine.
    folder: Option<PathBuf>,
    /// What this process read wrong.
    damage: Arc<Mutex<Damage>>,
}

/// What was found damaged.
#[derive(Debug, Default)]
struct Damage {
    segments: HashSet<(String, Digest)>,
    /// Manifests, with when that was first.
    manifests: HashMap<(Uuid, Digest), Timestamp>,
}

/// Whether a segment is in the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is there and stays there for long enough to be referred to.
    Safe,
    /// It is there, and a collection may be about to remove it, or it is damaged.
    Old,
    /// It is not there.
    Missing,
}

impl Vault {
    /// The snapshots at an address: `s3://BUCKET/PREFIX`, whose server and keys the variables that begin with `AWS_` name, or a
    /// folder of this machine.
    pub fn open(address: &str) -> Result<Self, VaultError> {
        let (objects, folder) = address::open(address)?;
        Ok(Self { folder: folder.map(std::path::Path::to_owned), ..Self::new(objects) })
    }

    /// The snapshots in a folder of this machine, which is made where it is not there.
    pub fn in_folder(folder: &std::path::Path) -> Result<Self, VaultError> {
        Ok(Self { folder: Some(folder.to_owned()), ..Self::new(address::in_folder(folder)?) })
    }

    /// The snapshots in this storage.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, folder: None, damage: Arc::default() }
    }

    /// Whether it is a folder of this machine.
    pub fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    fn damage(&self) -> MutexGuard<'_, Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_damaged(&self, space: &str, digest: Digest) -> bool {
        self.damage().segments.contains(&(space.to_owned(), digest))
    }

    /// Remembers that a segment is damaged, or that it is written again.
    fn set_damaged(&self, space: &str, digest: Digest, is_damaged: bool) {
        let mut damage = self.damage();
        let key = (space.to_owned(), digest);
        if !is_damaged {
            damage.segments.remove(&key);
            return;
        }
        if damage.segments.len() >= REMEMBERED_DAMAGE {
            damage.segments.clear();
        }
        damage.segments.insert(key);
    }

    /// Whether a segment is there, with the size that it has.
    pub async fn look(&self, space: &str, segment: &Segment, now: Timestamp) -> Result<Presence, VaultError> {
        let first = self.head(&of_segment(space, segment.digest)).await?;
        if first.is_some() && self.is_damaged(space, segment.digest) {
            return Ok(Presence::Old);
        }
        let is_safe = |found: &ObjectMeta| found.size == segment.packed && age(found, now) < GRACE / 2;
        match first {
            Some(found) if is_safe(&found) => return Ok(Presence::Safe),
            Some(_) => {}
            None => return Ok(Presence::Missing),
        }
        let again = self.again(space, segment.digest).await?;
        Ok(if again.iter().any(is_safe) { Presence::Safe } else { Presence::Old })
    }

    /// Which of the segments of a snapshot are not there any more, or not whole as far as their size and what was read of them
    /// tell.
    pub async fn lost(&self, space: &str, segments: &[Segment]) -> Result<HashSet<Digest>, VaultError> {
        let look = |segment: Segment| async move {
            let is_whole = |found: &ObjectMeta| found.size == segment.packed;
            let is_there = !self.is_damaged(space, segment.digest)
                && (self.head(&of_segment(space, segment.digest)).await?.as_ref().is_some_and(is_whole)
                    || self.again(space, segment.digest).await?.iter().any(is_whole));
            Ok::<_, VaultError>((!is_there).then_some(segment.digest))
        };
        let distinct: HashSet<Segment> = segments.iter().copied().collect();
        let looks = futures::stream::iter(distinct).map(look).buffer_unordered(COLLECT_AT_ONCE);
        looks.try_filter_map(|lost| std::future::ready(Ok(lost))).try_collect().await
    }

    async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, VaultError> {
        match self.objects.head(path).await {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a packed segment that is not there, is damaged, or may go.
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
        self.check_room().await?;
        self.objects.put(&path, packed.into()).await?;
        self.set_damaged(space, segment.digest, false);
        Ok(())
    }

    /// The bytes of a segment, which were checked. What is wrong is read once more, and then its other copies.
    pub async fn get(&self, space: &str, segment: &Segment) -> Result<Bytes, VaultError> {
        let first = self.read_twice(&of_segment(space, segment.digest), segment).await;
        let Err(VaultError::Missing(_) | VaultError::Damaged(_) | VaultError::Newer(_)) = first else { return first };
        for again in self.again(space, segment.digest).await? {
            if let Ok(bytes) = self.read_twice(&again.location, segment).await {
                return Ok(bytes);
            }
        }
        if matches!(first, Err(VaultError::Damaged(_))) {
            self.set_damaged(space, segment.digest, true);
        }
        first
    }

    async fn read_twice(&self, path: &Path, segment: &Segment) -> Result<Bytes, VaultError> {
        match self.read(path, segment).await {
            Err(VaultError::Damaged(_)) => self.read(path, segment).await,
            read => read,
        }
    }

    async fn read(&self, path: &Path, segment: &Segment) -> Result<Bytes, VaultError> {
        let found = self.objects.get(path).await?;
        // Packed it is one byte more at the most: nothing larger comes into memory.
        if found.meta.size > segment.size.saturating_add(1) {
            return Err(Damaged { digest: segment.digest, reason: "it is larger than it can be".to_owned() }.into());
        }
        let packed = found.bytes().await?;
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
        self.check_room().await?;
        self.objects.put(&of_manifest(space, session, digest), bytes.into()).await?;
        Ok(digest)
    }

    /// A manifest, which was checked, of at most so many bytes of JSON. One that is wrong is read once more.
    pub async fn manifest(
        &self,
        space: &str,
        session: Uuid,
        digest: Digest,
        most: usize,
    ) -> Result<Manifest, VaultError> {
        self.decoded(space, session, digest, move |digest, bytes| Manifest::decode(digest, bytes, most)).await
    }

    async fn decoded<T: Send + 'static>(
        &self,
        space: &str,
        session: Uuid,
        digest: Digest,
        decode: impl FnOnce(Digest, &[u8]) -> Result<T, ManifestError> + Copy + Send + 'static,
    ) -> Result<T, VaultError> {
        match self.decoded_once(space, session, digest, decode).await {
            Err(VaultError::Manifest(ManifestError::Damaged(_))) => {
                self.decoded_once(space, session, digest, decode).await
            }
            decoded => decoded,
        }
    }

    async fn decoded_once<T: Send + 'static>(
        &self,
        space: &str,
        session: Uuid,
        digest: Digest,
        decode: impl FnOnce(Digest, &[u8]) -> Result<T, ManifestError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let found = self.objects.get(&of_manifest(space, session, digest)).await?;
        if found.meta.size > MAX_MANIFEST_BYTES as u64 {
            return Err(ManifestError::TooLarge.into());
        }
        let bytes = found.bytes().await?;
        Ok(spawn_blocking(move || decode(digest, &bytes)).await??)
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
mod tests;
