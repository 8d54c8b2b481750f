//! Client of Ash's REST API and its resumable streams.
//!
//! [`Client`] has one method per operation. A message, or a session's stream, gives a [`FrameStream`]: it reconnects where the
//! connection is cut, and its reader sees every frame once and in order. What a frame says is read with [`Frame::read`].

mod answer;
mod backoff;
mod client;
mod cluster;
mod connection;
mod cursor;
mod deploy;
mod error;
mod event;
mod frame;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod parser;
mod stream;
mod types;

pub use ash_core::agent::NetworkPolicy;
pub use ash_protocol::{
    message::{Behavior, Decision},
    options::{Effort, OutputFormat, PermissionMode, Thinking, TurnOptions},
};
pub use backoff::Reconnect;
pub use client::{Client, Upload};
pub use cluster::ClusterError;
pub use deploy::{AgentFile, Deployment};
pub use error::{Error, Kind};
pub use event::Event;
pub use frame::Frame;
#[cfg(feature = "kubernetes")]
pub use kubernetes::{ClusterOptions, DEFAULT_RELEASE_NAMESPACE, DEFAULT_RELEASE_SERVICE, DEFAULT_SERVICE_ACCOUNT};
pub use parser::{MAX_FRAME_BYTES, Parsed, Parser, TooLong};
pub use stream::{FrameStream, Step, StreamOptions};
pub use types::{
    Agent, Content, CreateSession, Health, Message, Pool, QueueEntry, Runner, Session, SessionChanges, SessionQuery,
};
