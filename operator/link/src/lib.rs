//! HTTP/2 between coordinators and runners.
//!
//! A connection begins with a handshake: the server shows its version and proves that it has the shared secret, bound to a nonce
//! of the client's; with what it answered the client makes the token that every further request of this connection carries. The
//! secret itself never crosses. Nothing of a request (a model key may be in it) is sent to a server that has proven nothing.
//!
//! [`Peer`] is the client's side: a bounded pool of connections to one address. [`serve`] is the server's.

mod body;
mod client;
mod error;
mod frames;
mod io;
pub mod limits;
mod proof;
mod secret;
mod server;

pub use body::{Body, Outgoing, channel, empty, frames, full, json, pieces, read_bounded, read_json};
pub use client::{Answer, Peer};
pub use error::{LinkError, TrustError};
pub use frames::FrameReader;
pub use secret::{SecretFile, derived_key};
pub use server::{Service, answer_json, refuse, serve};
