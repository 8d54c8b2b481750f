//! What is counted of snapshots, all under `ash_runner_`.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// The counters.
#[derive(Debug, Default)]
pub(super) struct SnapshotMetrics {
    /// Snapshots that were taken, and those of a workspace that was as before.
    pub(super) taken: Counter,
    pub(super) unchanged: Counter,
    pub(super) failed: Counter,
    /// Snapshots that were put off because their session wrote too much.
    pub(super) deferred: Counter,
    /// Bytes that were read of workspaces, and bytes that were written to the storage for them.
    pub(super) bytes_read: Counter,
    pub(super) bytes_written: Counter,
    /// Things that are in a snapshot otherwise than they were in the workspace, or not.
    pub(super) notes: Counter,
    /// Segments that the storage had lost, and that were written again.
    pub(super) lost: Counter,
    /// Workspaces that were restored.
    pub(super) restored: Counter,
    pub(super) damaged: Counter,
    /// Snapshots and restorations that waited for others.
    pub(super) waited: Counter,
}

impl SnapshotMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_runner");
        for (name, help, counter) in [
            ("snapshots_taken", "Snapshots of workspaces that were taken", &self.taken),
            ("snapshots_unchanged", "Snapshots that found a workspace as it was", &self.unchanged),
            ("snapshots_failed", "Snapshots that could not be taken", &self.failed),
            ("snapshots_deferred", "Snapshots that were put off, of sessions that wrote too much", &self.deferred),
            ("snapshot_bytes_read", "Bytes read of workspaces for snapshots", &self.bytes_read),
            ("snapshot_bytes_written", "Bytes written to the snapshot storage", &self.bytes_written),
            ("snapshot_notes", "Things that a snapshot has otherwise than the workspace had them", &self.notes),
            ("snapshot_segments_lost", "Segments that the snapshot storage had lost", &self.lost),
            ("workspaces_restored", "Workspaces made again from a snapshot", &self.restored),
            ("snapshots_damaged", "Snapshots that were damaged, and not used", &self.damaged),
            ("snapshots_waited", "Snapshots and restorations that waited for others", &self.waited),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}
