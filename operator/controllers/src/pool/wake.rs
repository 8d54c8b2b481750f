//! Has the sandboxes of a namespace looked at: soon, with whatever else happens meanwhile, or at once, where a session waits.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Who is told to look.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    told: Notify,
    urgent: AtomicBool,
}

impl Wake {
    /// Something happened: what else comes in a moment is one look with it.
    pub(crate) fn soon(&self) {
        self.told.notify_one();
    }

    /// A session waits for a pod. A crowd of sessions is still few looks: each takes all whose rows are there by then.
    pub(crate) fn at_once(&self) {
        self.urgent.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// Waits for either; what was told since the last wait counts.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    /// Whether to look at once; then it is forgotten.
    pub(super) fn take_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::AcqRel)
    }
}
