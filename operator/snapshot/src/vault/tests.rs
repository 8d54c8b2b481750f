#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use object_store::ObjectStoreExt as _;
use uuid::Uuid;

use super::{Presence, Vault, VaultError, of_manifest, of_segment};
use crate::{
    Content, Entry, EntryKind, EntryPath, Manifest, ManifestError, Segment, Stamp,
    limits::{DAMAGE_CONFIRMED, GRACE, MAX_MANIFEST_BYTES, UNFINISHED},
    packed::pack,
};

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
    Manifest::new(None, Timestamp::now(), entries, contents, segments.to_vec(), Vec::new(), 0).unwrap()
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
        kept.vault.manifest("tenant", session, digest, MAX_MANIFEST_BYTES).await.unwrap(),
        manifest_of(&kept, session, digest).await
    );
    // Half written, and with one bit changed.
    let path = of_segment("tenant", segment.digest);
    for damage in [&b""[..], b"\0some byte", b"\0some bytez", b"\x01some bytes", b"\0some bytes and more"] {
        kept.vault.objects.put(&path, Bytes::copy_from_slice(damage).into()).await.unwrap();
        assert!(matches!(kept.vault.get("tenant", &segment).await, Err(VaultError::Damaged(_))), "{damage:?}");
    }
    kept.vault.objects.put(&path, Bytes::from_static(b"\x02some bytes").into()).await.unwrap();
    let newer = kept.vault.get("tenant", &segment).await.unwrap_err();
    assert!(matches!(newer, VaultError::Newer(_)) && !newer.is_loss());
    let path = of_manifest("tenant", session, digest);
    kept.vault.objects.put(&path, Bytes::from_static(b"half").into()).await.unwrap();
    assert!(matches!(
        kept.vault.manifest("tenant", session, digest, MAX_MANIFEST_BYTES).await,
        Err(VaultError::Manifest(_))
    ));
}

async fn manifest_of(kept: &Kept, session: Uuid, digest: crate::Digest) -> Manifest {
    kept.vault.manifest("tenant", session, digest, MAX_MANIFEST_BYTES).await.unwrap()
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
    assert!(kept.vault.manifest("tenant", session, old, MAX_MANIFEST_BYTES).await.is_ok());
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
}

#[tokio::test]
async fn what_is_damaged_is_written_again_and_never_removed_for_it() {
    let kept = Kept::new();
    let now = Timestamp::now();
    let segment = kept.put("tenant", b"some bytes").await;
    let path = of_segment("tenant", segment.digest);
    let whole = kept.vault.objects.get(&path).await.unwrap().bytes().await.unwrap();
    assert!(kept.vault.lost("tenant", &[segment]).await.unwrap().is_empty());
    // Cut short, as after a power failure: its size tells.
    kept.vault.objects.put(&path, Bytes::new().into()).await.unwrap();
    assert_eq!(kept.vault.look("tenant", &segment, now).await.unwrap(), Presence::Old);
    assert_eq!(kept.vault.lost("tenant", &[segment]).await.unwrap(), [segment.digest].into());
    // A bit is another: only who reads it knows.
    let mut flipped = whole.to_vec();
    flipped[3] ^= 1;
    kept.vault.objects.put(&path, Bytes::from(flipped.clone()).into()).await.unwrap();
    assert_eq!(kept.vault.look("tenant", &segment, now).await.unwrap(), Presence::Safe);
    assert!(matches!(kept.vault.get("tenant", &segment).await, Err(VaultError::Damaged(_))));
    assert_eq!(kept.vault.look("tenant", &segment, now).await.unwrap(), Presence::Old);
    assert_eq!(kept.vault.lost("tenant", &[segment]).await.unwrap(), [segment.digest].into());
    let there = kept.vault.objects.get(&path).await.unwrap().bytes().await.unwrap();
    assert_eq!(&there[..], &flipped[..], "nothing was removed");
    kept.put("tenant", b"some bytes").await;
    assert_eq!(kept.vault.get("tenant", &segment).await.unwrap(), Bytes::from_static(b"some bytes"));
    assert!(kept.vault.lost("tenant", &[segment]).await.unwrap().is_empty());
    // What was garbage for a while is as good as it was.
    kept.vault.objects.put(&path, whole.into()).await.unwrap();
    assert_eq!(kept.vault.get("tenant", &segment).await.unwrap(), Bytes::from_static(b"some bytes"));
}

#[tokio::test]
async fn a_manifest_that_stays_damaged_stops_no_collection_and_one_that_is_so_for_a_while_loses_nothing() {
    let kept = Kept::new();
    let (one, two) = (kept.put("tenant", b"one").await, kept.put("tenant", b"two").await);
    let session = Uuid::now_v7();
    let whole = kept.vault.put_manifest("tenant", session, manifest(&[one])).await.unwrap();
    let other = kept.vault.put_manifest("tenant", session, manifest(&[two])).await.unwrap();
    let named = [(session, whole), (session, other)];
    let path = of_manifest("tenant", session, other);
    let bytes = kept.vault.objects.get(&path).await.unwrap().bytes().await.unwrap();
    kept.vault.objects.put(&path, Bytes::new().into()).await.unwrap();
    let later = Timestamp::now() + SignedDuration::try_from(GRACE + Duration::from_secs(60)).unwrap();
    let much_later = later + SignedDuration::try_from(DAMAGE_CONFIRMED).unwrap();
    let damaged = kept.vault.collect("tenant", &named, later).await.unwrap_err();
    assert!(matches!(damaged, VaultError::Manifest(ManifestError::Damaged(_))));
    // It was the storage.
    kept.vault.objects.put(&path, bytes.into()).await.unwrap();
    assert_eq!(kept.vault.collect("tenant", &named, much_later).await.unwrap().removed, 0);
    // It is the manifest.
    kept.vault.objects.put(&path, Bytes::new().into()).await.unwrap();
    assert!(kept.vault.collect("tenant", &named, later).await.is_err());
    assert_eq!(kept.vault.collect("tenant", &named, much_later).await.unwrap().removed, 1);
    assert!(kept.vault.get("tenant", &one).await.is_ok());
    assert!(matches!(kept.vault.get("tenant", &two).await, Err(VaultError::Missing(_))));
}

#[tokio::test]
async fn a_storage_is_one_installations() {
    let kept = Kept::new();
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    kept.vault.belongs_to(one).await.unwrap();
    kept.vault.belongs_to(one).await.unwrap();
    assert!(matches!(kept.vault.belongs_to(other).await, Err(VaultError::Foreign(found)) if found == one));
}

#[tokio::test]
async fn what_was_never_finished_goes_and_what_is_being_written_does_not() {
    let kept = Kept::new();
    let segment = kept.put("tenant", b"some bytes").await;
    let folder = kept.vault.folder.clone().unwrap().join("tenant/segments");
    let (old, young) = (folder.join("digest#1"), folder.join("digest#2"));
    for (path, age) in [(&old, UNFINISHED), (&young, Duration::ZERO)] {
        let file = std::fs::File::create(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    kept.vault.remove_unfinished().await.unwrap();
    assert!(!old.exists() && young.exists());
    assert!(kept.vault.get("tenant", &segment).await.is_ok());
}
