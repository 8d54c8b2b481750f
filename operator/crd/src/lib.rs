//! The resources `Agent` and `Session` of the API group `ash.dev/v1alpha1`: their types, schemas and rules, the conditions and
//! reasons of their status, the labels that Ash writes, and what their fields mean in Ash's own words.
//!
//! The manifests in `crds/` and the page `docs/conditions.md` are made from here; [`generated::files`] has them all. Doc
//! comments of fields are the manual that `kubectl explain` shows: write them for the person with the manifest.
#![allow(clippy::doc_markdown, reason = "kubectl shows doc comments as they are, and resources by their plain names")]

mod agent;
pub mod condition;
mod duration;
mod environment;
pub mod generated;
mod limits;
mod message;
pub mod names;
mod network;
mod options;
mod reason;
mod reference;
mod resources;
mod sandbox;
mod schema;
mod session;
mod settings;
mod source;

pub use agent::{Agent, AgentSpec, AgentStatus, ModelCredential, ModelCredentialType, WarmPool};
pub use duration::{Duration, InvalidDuration};
pub use environment::{EnvironmentSource, EnvironmentVariable};
pub use limits::TurnLimits;
pub use message::{Effort, FirstMessage, OutputFormat, OutputFormatType, Thinking, ThinkingType};
pub use network::{Network, NetworkMode};
pub use options::{PermissionMode, SessionOptions};
pub use reason::{Kind, Outcome, Reason};
pub use reference::{LocalReference, SecretKeyReference};
pub use resources::Resources;
pub use sandbox::{ImagePullPolicy, Sandbox};
pub use session::{PausedReason, Session, SessionSpec, SessionState, SessionStatus, TokenUsage};
pub use settings::{Unusable, resolve};
pub use source::{BundleSource, ConfigMapFile, ConfigMapSource, GitSource, InlineFile, InlineSource, Source};

/// The API group of both kinds.
pub const GROUP: &str = "ash.dev";

/// The version of the API group.
pub const VERSION: &str = "v1alpha1";

/// Both definitions, as the API server gets them.
pub fn definitions() -> [k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition; 2]
{
    use kube::CustomResourceExt;
    [agent::finish(Agent::crd()), session::finish(Session::crd())]
}
