//! Events: what people care about, in the words of the conditions. What goes well is in the conditions only.

use ash_crd::{Outcome, Reason};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// The longest note that an Event can have.
const MAX_NOTE_BYTES: usize = 1024;

/// Writes Events. The API server keeps an hour of them; a repeat counts up.
#[derive(Clone)]
pub(crate) struct Events(Recorder);

impl Events {
    pub(crate) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: "ash-operator".into(), instance: Some(instance.into()) };
        Self(Recorder::new(client, reporter))
    }

    /// Whether people are told by an Event.
    pub(crate) fn is_told(reason: Reason) -> bool {
        use Reason as R;
        reason == R::Deployed
            || reason.outcome() == Outcome::Stalled
            || (reason.outcome() == Outcome::Progressing
                && !matches!(reason, R::Starting | R::Resuming | R::Ending | R::FetchingSource))
    }

    /// Tells; what cannot be written is lost, since the condition says the same.
    pub(crate) async fn tell(&self, object: &ObjectReference, reason: Reason, message: &str) {
        let text = if message.is_empty() { reason.meaning() } else { message };
        let note = text[..text.floor_char_boundary(MAX_NOTE_BYTES)].to_owned();
        let event = Event {
            type_: if reason.outcome() == Outcome::Settled { EventType::Normal } else { EventType::Warning },
            reason: reason.as_str().to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, object).await {
            tracing::debug!(%error, reason = reason.as_str(), "an Event was not written");
        }
    }
}
