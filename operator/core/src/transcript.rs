//! The conversation as Claude Code keeps it, put together from the log.

use ash_protocol::message::TranscriptPart;
use uuid::Uuid;

/// Claude Code's transcript of a session's current conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// Claude Code's own id of the conversation.
    pub conversation: Uuid,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

impl Transcript {
    /// Puts the bodies of a log's transcript entries together, in their order.
    ///
    /// A part of another conversation, or one at offset 0, begins anew; a part that overlaps what is there replaces it from its
    /// offset on; a part beyond the end (its predecessor was lost with both its keepers) ends what can be relied on: it and
    /// what follows it are left out until a part begins anew.
    pub fn assemble<'a>(bodies: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut transcript: Option<Self> = None;
        for body in bodies {
            let Some((head, bytes)) = TranscriptPart::split(body) else { continue };
            let offset = usize::try_from(head.offset).unwrap_or(usize::MAX);
            match &mut transcript {
                _ if offset == 0 => {
                    transcript = Some(Self { conversation: head.conversation, bytes: bytes.to_vec() });
                }
                Some(current) if current.conversation == head.conversation && offset <= current.bytes.len() => {
                    current.bytes.truncate(offset);
                    current.bytes.extend_from_slice(bytes);
                }
                _ => {}
            }
        }
        transcript
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::message::TranscriptPart;
    use uuid::Uuid;

    use super::Transcript;

    fn part(conversation: u128, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let head = TranscriptPart { conversation: Uuid::from_u128(conversation), offset };
        let mut body = serde_json::to_vec(&head).unwrap();
        body.push(b'\n');
        body.extend_from_slice(bytes);
        body
    }

    #[test]
    fn parts_follow_each_other() {
        let parts = [part(1, 0, b"ab"), part(1, 2, b"cd"), part(1, 3, b"xy"), part(1, 9, b"lost")];
        let transcript = Transcript::assemble(parts.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(transcript.bytes, b"abcxy");
    }

    #[test]
    fn another_conversation_begins_anew() {
        let parts = [part(1, 0, b"ab"), part(2, 0, b"new"), part(1, 2, b"old")];
        let transcript = Transcript::assemble(parts.iter().map(Vec::as_slice)).unwrap();
        assert_eq!((transcript.conversation, &transcript.bytes[..]), (Uuid::from_u128(2), &b"new"[..]));
        assert_eq!(Transcript::assemble([]), None);
    }
}
