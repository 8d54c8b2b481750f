//! Segments that are packed and kept while more is read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ash_snapshot::{MAX_SEGMENTS, ManifestError, Presence, Segment, Vault, pack};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::{JoinSet, spawn_blocking};

use super::SnapshotError;
use crate::limits::PACKED_AT_ONCE;

/// Packs and keeps a few at a time.
pub(super) struct Packing {
    vault: Vault,
    space: Arc<str>,
    running: JoinSet<Result<Packed, SnapshotError>>,
    /// Of each part of the plan, in order.
    segments: Vec<Vec<Option<Segment>>>,
    count: usize,
    written: Arc<AtomicU64>,
}

struct Packed {
    part: usize,
    place: usize,
    segment: Segment,
}

impl Packing {
    /// For so many parts; what is written is counted in `written` as soon as it is.
    pub(super) fn new(vault: &Vault, space: &str, parts: usize, written: &Arc<AtomicU64>) -> Self {
        Self {
            vault: vault.clone(),
            space: space.into(),
            running: JoinSet::new(),
            segments: vec![Vec::new(); parts],
            count: 0,
            written: Arc::clone(written),
        }
    }

    /// How many segments a part has so far.
    pub(super) fn count(&self, part: usize) -> usize {
        self.segments[part].len()
    }

    /// Adds the next segment of a part; waits where too many are at it.
    pub(super) async fn add(&mut self, part: usize, bytes: Bytes) -> Result<(), SnapshotError> {
        self.count += 1;
        if self.count > MAX_SEGMENTS {
            return Err(ManifestError::TooLarge.into());
        }
        while self.running.len() >= PACKED_AT_ONCE {
            self.take_one().await?;
        }
        let place = self.segments[part].len();
        self.segments[part].push(None);
        let (vault, space, written) = (self.vault.clone(), Arc::clone(&self.space), Arc::clone(&self.written));
        self.running.spawn(async move {
            let (segment, packed) = spawn_blocking(move || pack(&bytes)).await?;
            let presence = vault.look(&space, &segment, Timestamp::now()).await?;
            if presence != Presence::Safe {
                // Before it is: what was given up in the middle was written all the same.
                written.fetch_add(segment.packed, Ordering::Relaxed);
            }
            vault.put(&space, &segment, packed, presence).await?;
            Ok(Packed { part, place, segment })
        });
        Ok(())
    }

    async fn take_one(&mut self) -> Result<bool, SnapshotError> {
        let Some(done) = self.running.join_next().await else { return Ok(false) };
        let Packed { part, place, segment } = done??;
        self.segments[part][place] = Some(segment);
        Ok(true)
    }

    /// The segments of each part, once all are kept.
    pub(super) async fn finish(mut self) -> Result<Vec<Vec<Segment>>, SnapshotError> {
        while self.take_one().await? {}
        let segments = std::mem::take(&mut self.segments);
        Ok(segments.into_iter().map(|part| part.into_iter().flatten().collect()).collect())
    }
}
