//! What coordinator and runner say to each other in Ash's own words. How it travels is in [`ash_protocol::fleet`].

use std::{fmt, str::FromStr};

use ash_protocol::{Epoch, Sequence, fleet::Hidden, message::Decision, options::SessionOptions};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    agent::AgentVersion,
    id::{AgentId, SandboxId, SessionId, TenantId, TurnId},
    name::is_name,
    ports::{Load, NewMessage, PodSandbox, SnapshotRow},
    session::{Closing, Session},
};

/// The longest name of a runner: a node's, which is a DNS subdomain (RFC 1123), since runners are named by their nodes.
pub const MAX_RUNNER_NAME_CHARACTERS: usize = 253;

/// The name of a runner: written like an agent's, and longer where a node's name is. A runner that starts again keeps it; two at a
/// time must not share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunnerName(String);

/// A text that is no name of a runner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name for a runner: use 1 to {MAX_RUNNER_NAME_CHARACTERS} letters, digits, '-', '_' or '.', beginning and ending with a letter \
     or digit"
)]
pub struct InvalidRunnerName(String);

impl RunnerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunnerName {
    type Error = InvalidRunnerName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RunnerName> for String {
    fn from(name: RunnerName) -> Self {
        name.0
    }
}

impl FromStr for RunnerName {
    type Err = InvalidRunnerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text, MAX_RUNNER_NAME_CHARACTERS) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRunnerName(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for RunnerName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One life of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerId {
    /// Its name.
    pub name: RunnerName,
    /// Made anew whenever its process starts.
    pub incarnation: Uuid,
}

/// A runner that starts, or that a coordinator does not know any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Register {
    /// Who it is.
    pub runner: RunnerId,
    /// Where coordinators reach it: a URL.
    pub address: String,
    /// The node pool that it serves; empty outside Kubernetes.
    #[serde(default)]
    pub pool: String,
    /// The node that it is on; empty outside Kubernetes.
    #[serde(default)]
    pub node: String,
    /// The release that it runs.
    #[serde(default)]
    pub release: String,
    /// Sandboxes at the most.
    pub capacity: u32,
    /// Sessions that have a sandbox of it, as far as it knows.
    pub held: Vec<Held>,
    /// Sessions whose files it has. Coordinators know it from the store; an earlier release asked for it.
    pub homes: Vec<SessionId>,
}

/// A session on a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The session.
    pub session: SessionId,
    /// The sandbox.
    pub sandbox: SandboxId,
}

/// What a runner needs to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// The key that signs the tokens of its sandboxes: 64 hexadecimal digits. The same for every life of the runner of this name.
    pub token_key: Hidden,
    /// How often it says that it lives.
    pub heartbeat_ms: u64,
    /// Sessions that it holds and that are not its own any more: their sandboxes end.
    pub disowned: Vec<SessionId>,
    /// What it keeps warm.
    pub warm: WarmList,
}

/// The versions that every runner keeps sandboxes warm of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WarmList {
    /// The same for the same list, on every coordinator: made from the versions.
    pub revision: u64,
    /// One version of each agent.
    pub versions: Vec<AgentVersion>,
}

/// A runner lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// What it does.
    pub load: Load,
    /// The list of versions that it has.
    pub warm_revision: u64,
}

/// A coordinator heard a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    /// Whether that is in the store. An answer without it keeps a runner going, and never thaws one.
    pub written: bool,
}

/// A key of the model API, for one session. It is kept in memory, for as long as the session is on the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "camelCase")]
pub enum ModelKey {
    /// Sent as `x-api-key`.
    ApiKey(Hidden),
    /// Sent as `Authorization: Bearer`.
    AuthToken(Hidden),
}

/// A new session for a runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The session.
    pub session: Session,
    /// The version of its agent.
    pub agent: AgentVersion,
    /// Its key of the model API.
    pub model_key: Option<ModelKey>,
    /// The warm sandbox that was claimed for it, where sandboxes are pods; elsewhere the runner finds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
}

/// What a coordinator knows of a pod whose bridge proved itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admitted {
    /// The sandbox.
    pub pod: PodSandbox,
    /// The version that it runs.
    pub agent: AgentVersion,
    /// The session that has it, or that it was made for.
    pub placed: Option<Placed>,
}

/// A sandbox pod, in a call about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfPod {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Why it is over: a sentence for the session's reader and the agent's condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A message for a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Send {
    /// The session and its agent.
    pub place: Place,
    /// The message.
    pub message: NewMessage,
}

/// A reader of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Read {
    /// The session.
    pub session: Session,
    /// The last entry that the reader has.
    pub after: Sequence,
}

/// What precedes the entries of the answer to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taken {
    /// Whether it joined a turn that was there before.
    pub joined: bool,
}

/// A session on a sandbox of the runner, with what its gateway needs again after a restart.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placed {
    /// The session.
    pub session: Session,
    /// Its key of the model API.
    pub model_key: Option<ModelKey>,
}

/// A session that is taken off its sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Close {
    /// The session.
    pub session: Session,
    /// What a person wants.
    pub closing: Closing,
}

/// An answer to a permission request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The session.
    pub session: SessionId,
    /// The request.
    pub permission: String,
    /// What was decided.
    pub decision: Decision,
}

/// Other options for a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configure {
    /// The session.
    pub session: SessionId,
    /// Its options.
    pub options: SessionOptions,
}

/// What a store's call is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfSession {
    /// The session.
    pub session: SessionId,
    /// Whose it is, for a look-up of its row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// A turn of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<TurnId>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSnapshot {
    /// The epoch that its session was in.
    pub epoch: Epoch,
    /// The snapshot.
    pub snapshot: SnapshotRow,
}

/// A snapshot that was found damaged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DamagedSnapshot {
    /// Whose it is.
    pub session: SessionId,
    /// The digest of its manifest.
    pub digest: String,
}

/// Which version of an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfAgent {
    /// Whose it is.
    pub tenant: TenantId,
    /// The agent.
    pub agent: AgentId,
    /// The version.
    pub number: u32,
}

/// Which bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfBundle {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its digest.
    pub digest: String,
}

/// Which entries.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfLog {
    /// The session.
    pub session: SessionId,
    /// Only those after this one.
    pub after: Sequence,
    /// About so many bytes.
    pub max_bytes: usize,
}

/// What precedes the entries of a page.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageHead {
    /// How far the log was read.
    pub through: Sequence,
    /// Whether there was nothing more.
    pub end: bool,
}

/// What precedes the entries of one session in an append.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppendHead {
    /// The session.
    pub session: SessionId,
    /// The entry that they follow.
    pub after: Sequence,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{MAX_RUNNER_NAME_CHARACTERS, RunnerName};

    #[test]
    fn a_runner_may_have_the_name_of_any_node() {
        let longest = vec!["a".repeat(61); 4].join(".") + ".node5";
        assert_eq!(longest.len(), MAX_RUNNER_NAME_CHARACTERS);
        let name: RunnerName = longest.parse().unwrap();
        let text = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<RunnerName>(&text).unwrap(), name);
        for wrong in [format!("{longest}x"), String::new(), "a/b".to_owned(), "-a".to_owned()] {
            assert!(wrong.parse::<RunnerName>().is_err(), "{wrong}");
            assert!(serde_json::from_str::<RunnerName>(&serde_json::json!(wrong).to_string()).is_err());
        }
    }
}
