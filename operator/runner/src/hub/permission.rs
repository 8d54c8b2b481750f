//! The permission requests of a turn: each is answered once.

use std::collections::BTreeMap;

use ash_protocol::message::{BridgeEvent, Resolution};

use super::Hub;
use crate::{
    limits::{MAX_PERMISSION_ID_BYTES, MAX_PERMISSIONS},
    metrics::Metrics,
};

/// What a permission request's answer meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PermissionGate {
    /// It is the first one: pass it on.
    First,
    /// Somebody or something was quicker.
    Closed,
    /// There is no such request.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PermissionState {
    Open,
    Closed,
}

/// The requests of the turn in progress, by id. Bounded by [`MAX_PERMISSIONS`], whatever the bridge sends.
#[derive(Debug, Default)]
pub(super) struct Permissions(BTreeMap<String, PermissionState>);

impl Permissions {
    /// These are open, and no others.
    pub(super) fn restore(&mut self, open: Vec<String>, metrics: &Metrics) {
        self.clear();
        for id in open {
            self.note(id, PermissionState::Open, metrics);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes what the bridge says of a request.
    pub(super) fn take(&mut self, event: BridgeEvent, metrics: &Metrics) {
        match event {
            BridgeEvent::PermissionRequest { id, .. } => self.note(id, PermissionState::Open, metrics),
            BridgeEvent::PermissionResolved { id, resolution } => {
                tracing::debug!(permission = %id, ?resolution, "a permission request was decided");
                // One that expired or was interrupted is closed also where its request is not known any more.
                if !matches!(resolution, Resolution::Allowed | Resolution::Denied) || self.0.contains_key(&id) {
                    self.note(id, PermissionState::Closed, metrics);
                }
            }
            _ => {}
        }
    }

    /// A bridge keeps to these bounds; whoever impersonates one only loses answers to its own requests.
    fn note(&mut self, id: String, state: PermissionState, metrics: &Metrics) {
        let has_room = self.0.len() < MAX_PERMISSIONS || self.0.contains_key(&id);
        if id.len() <= MAX_PERMISSION_ID_BYTES && has_room {
            self.0.insert(id, state);
        } else if state == PermissionState::Open {
            metrics.permissions_unanswerable.inc();
        }
    }
}

impl Hub {
    /// Closes a permission request for all but the first answer.
    pub(crate) fn close_permission(&self, id: &str) -> PermissionGate {
        match self.lock().permissions.0.get_mut(id) {
            None => PermissionGate::Unknown,
            Some(PermissionState::Closed) => PermissionGate::Closed,
            Some(state) => {
                *state = PermissionState::Closed;
                PermissionGate::First
            }
        }
    }

    /// Opens a permission request again whose answer never reached the bridge.
    pub(crate) fn reopen_permission(&self, id: &str) {
        if let Some(state) = self.lock().permissions.0.get_mut(id) {
            *state = PermissionState::Open;
        }
    }
}
