//! Deploying an agent: its files travel inside the request.

use std::collections::BTreeMap;

use ash_core::agent::NetworkPolicy;
use bytes::Bytes;
use futures::{Stream, stream};
use serde::Serialize;
use serde_json::{Map, Value};

/// Bytes of a deployment that are handed to the connection at once: 64 KiB. How far it got is told as often.
const PIECE_BYTES: usize = 64 << 10;

/// An agent as it is deployed. The same name again makes a new version.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// Its name.
    pub name: String,
    /// Its files.
    pub files: Vec<AgentFile>,
    /// Another name to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// A sentence about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The model for sessions that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Replaces the files' system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Environment variables for every session.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where its sandboxes may connect to beside the model; the server's default where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
    /// What the deployer keeps with the version.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

/// One file of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentFile {
    /// Where it is in the agent's folder, with `/` between names.
    pub path: String,
    /// What is in it, in Base64.
    pub content: String,
    /// Whether it can be run as a program.
    pub executable: bool,
}

/// The bytes in pieces; each is counted as sent when the connection takes it.
pub(crate) fn pieces(
    body: Bytes,
    mut sent: impl FnMut(u64) + Send + 'static,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let mut rest = body;
    stream::iter(std::iter::from_fn(move || {
        (!rest.is_empty()).then(|| {
            let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
            sent(piece.len() as u64);
            Ok(piece)
        })
    }))
}
