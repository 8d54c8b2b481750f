//! Readers of a session: first the log, then the hub's tail, then what comes, with no gap and nothing twice.

use std::sync::Arc;

use ash_core::{
    EntryKind, Sequence,
    ports::{Batch, EntryReader, LoggedEntry, ReadError, RunnerStore},
};
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{
    hub::{Hub, Tail},
    limits::BATCH_BYTES,
    standing::Standing,
};

/// A reader's position in one session. Holds no entries.
pub(crate) struct HubReader {
    hub: Arc<Hub>,
    store: Arc<dyn RunnerStore>,
    position: Sequence,
    silent: CancellationToken,
    standing: Arc<Standing>,
    /// The runner is frozen: the session may be served elsewhere by the time that anything more could be read here.
    cut: CancellationToken,
}

impl HubReader {
    pub(crate) fn new(
        hub: Arc<Hub>,
        store: Arc<dyn RunnerStore>,
        position: Sequence,
        silent: CancellationToken,
        standing: Arc<Standing>,
    ) -> Self {
        let cut = standing.cut();
        Self { hub, store, position, silent, standing, cut }
    }

    async fn read_log(&mut self) -> Result<Batch, ReadError> {
        self.hub.metrics.log_reads.inc();
        let page = self.store.read(self.hub.session, self.position, BATCH_BYTES).await?;
        // Entries that were committed since are in the log, or in the tail; a page never ends before its own start.
        self.position = page.through.max(self.position);
        let visible = page.entries.into_iter().filter(|entry| entry.kind != EntryKind::Transcript);
        Ok(visible.map(|entry| Arc::new(LoggedEntry::new(entry))).collect())
    }
}

#[async_trait]
impl EntryReader for HubReader {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        let hub = Arc::clone(&self.hub);
        // What came just before the end is still given.
        let mut ends = self.silent.is_cancelled();
        loop {
            let changed = hub.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.cut.is_cancelled() || !self.standing.serves() {
                return Ok(None);
            }
            match hub.after(self.position) {
                Tail::Entries { batch, through } => {
                    self.position = through;
                    return Ok(Some(batch));
                }
                Tail::InLog => return self.read_log().await.map(Some),
                Tail::Broken(message) => return Err(ReadError::Unwritten(message)),
                Tail::Nothing if ends => return Ok(None),
                Tail::Nothing => {}
            }
            tokio::select! {
                () = changed => {}
                () = self.silent.cancelled() => ends = true,
                () = self.cut.cancelled() => return Ok(None),
            }
        }
    }

    fn position(&self) -> Sequence {
        self.position
    }

    fn turn_in_progress(&self) -> bool {
        self.hub.expects_more(self.position)
    }
}
