//! The first bytes of a bridge that dials over the network: one line of JSON says who it is, one line answers. What follows is
//! what is spoken on a Unix socket.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::fleet::Hidden;

/// The longest line, its newline included. A token of a service account takes some 1,200 bytes.
pub const MAX_LINE_BYTES: usize = 16 << 10;

/// What every preamble says that a bridge sends.
pub const BRIDGE: &str = "bridge";

/// How a bridge proves which pod it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// With the pod's own token, which names the runner as its audience.
    Token(Hidden),
    /// With the ticket that the runner gave it after it was proven before.
    Ticket(Hidden),
}

/// The first line, from the bridge: `{"ash":"bridge","token":"..."}` or `{"ash":"bridge","ticket":"..."}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preamble {
    /// [`BRIDGE`].
    pub ash: String,
    /// The proof.
    #[serde(flatten)]
    pub proof: Proof,
}

/// The runner's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the connection goes on.
    pub ok: bool,
    /// Where it does: what to prove the next connection with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Hidden>,
    /// Where it does not: why, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Dialling again changes nothing: the bridge ends itself.
    #[serde(default, rename = "final")]
    pub is_final: bool,
}

/// A line that is none of a preamble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Too long.
    #[error("its first line is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// Something else.
    #[error("its first line is no preamble of a bridge")]
    Malformed,
}

impl Preamble {
    /// A bridge's preamble with this proof.
    pub fn of_bridge(proof: Proof) -> Self {
        Self { ash: BRIDGE.to_owned(), proof }
    }

    /// Reads a line without its newline.
    ///
    /// # Errors
    /// Where it is no preamble of a bridge.
    pub fn read(line: &[u8]) -> Result<Self, LineError> {
        let preamble: Self = serde_json::from_slice(line).map_err(|_| LineError::Malformed)?;
        if preamble.ash == BRIDGE { Ok(preamble) } else { Err(LineError::Malformed) }
    }
}

impl Answer {
    /// Welcome, with the ticket for the next time.
    pub fn accepted(ticket: Option<String>) -> Self {
        Self { ok: true, ticket: ticket.map(Hidden), error: None, is_final: false }
    }

    /// Not welcome.
    pub fn refused(error: impl Into<String>, is_final: bool) -> Self {
        Self { ok: false, ticket: None, error: Some(error.into()), is_final }
    }
}

/// A message as a line, with its newline.
pub fn line(message: &impl Serialize) -> Bytes {
    // Our own types with string keys become JSON.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Takes the first line off what was received so far, without its newline; `None` where it is not whole yet.
///
/// # Errors
/// Where it is longer than a line may be: nothing more of it is to be read.
pub fn take_line(received: &mut BytesMut) -> Result<Option<Bytes>, LineError> {
    let looked_at = &received[..received.len().min(MAX_LINE_BYTES)];
    match memchr::memchr(b'\n', looked_at) {
        Some(end) => {
            let line = received.split_to(end + 1).freeze();
            Ok(Some(line.slice(..end)))
        }
        None if received.len() >= MAX_LINE_BYTES => Err(LineError::TooLong),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::{Answer, Hidden, LineError, MAX_LINE_BYTES, Preamble, Proof, line, take_line};

    #[test]
    fn the_wire_is_as_written() {
        let token = Preamble::of_bridge(Proof::Token(Hidden("a.b.c".to_owned())));
        assert_eq!(&line(&token)[..], b"{\"ash\":\"bridge\",\"token\":\"a.b.c\"}\n");
        let ticket = Preamble::of_bridge(Proof::Ticket(Hidden("t".to_owned())));
        assert_eq!(&line(&ticket)[..], b"{\"ash\":\"bridge\",\"ticket\":\"t\"}\n");
        assert_eq!(
            &line(&Answer::accepted(Some("t".to_owned())))[..],
            b"{\"ok\":true,\"ticket\":\"t\",\"final\":false}\n"
        );
        let refused = Answer::refused("no", true);
        assert_eq!(&line(&refused)[..], b"{\"ok\":false,\"error\":\"no\",\"final\":true}\n");
        assert!(!format!("{token:?} {ticket:?}").contains("a.b.c"));
    }

    #[test]
    fn what_is_no_preamble_is_refused() {
        for text in [
            "",
            "{}",
            "null",
            r#"{"ash":"bridge"}"#,
            r#"{"ash":"runner","token":"x"}"#,
            r#"{"token":"x"}"#,
            "GET / HTTP/1.1",
        ] {
            assert_eq!(Preamble::read(text.as_bytes()), Err(LineError::Malformed), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_line_is_found_wherever_it_is_cut(
            text in "[a-zA-Z0-9._-]{0,2000}",
            rest in prop::collection::vec(any::<u8>(), 0..100),
            cut in 0usize..3000,
        ) {
            let sent = Preamble::of_bridge(Proof::Token(Hidden(text)));
            let mut bytes = line(&sent).to_vec();
            bytes.extend_from_slice(&rest);
            let cut = cut.min(bytes.len());
            let mut received = BytesMut::from(&bytes[..cut]);
            let found = take_line(&mut received).unwrap();
            let found = found.unwrap_or_else(|| {
                received.extend_from_slice(&bytes[cut..]);
                take_line(&mut received).unwrap().unwrap()
            });
            prop_assert_eq!(Preamble::read(&found).unwrap(), sent);
            prop_assert!(rest.starts_with(&received));
        }

        #[test]
        fn no_bytes_panic_and_a_line_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..200), times in 1usize..200) {
            let mut received = BytesMut::from(&bytes.repeat(times)[..]);
            match take_line(&mut received) {
                Ok(Some(found)) => {
                    prop_assert!(found.len() < MAX_LINE_BYTES);
                    let _ = Preamble::read(&found);
                }
                Ok(None) => prop_assert!(received.len() < MAX_LINE_BYTES),
                Err(error) => prop_assert_eq!(error, LineError::TooLong),
            }
        }
    }
}
