//! Answers of a head and raw frames.

use std::time::Duration;

use ash_core::ports::StoreError;
use ash_link::{Answer, FrameReader, LinkError};
use ash_protocol::frame::{Frame, FrameKind};
use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// The most that one answer may hold: a conversation, which is the longest, has at most 256 MiB, and a page one line more than
/// was asked for.
const MAX_BYTES: usize = 320 << 20;

/// An answer that is not whole.
pub(super) fn broken(reason: String) -> LinkError {
    LinkError::Broken { address: "the coordinator".to_owned(), reason }
}

/// Reads the head and the frames after it. A head that is an error has none.
pub(super) async fn read<T: DeserializeOwned>(
    body: Answer,
    within: Duration,
) -> Result<Result<(T, Vec<Frame>), StoreError>, LinkError> {
    let all = async {
        let mut reader = FrameReader::new(body);
        let head = reader.next().await?.filter(|frame| frame.kind == FrameKind::Reply);
        let head = head.ok_or_else(|| "an answer without a head".to_owned())?;
        let head: Result<T, StoreError> = serde_json::from_slice(&head.body).map_err(|error| error.to_string())?;
        let head = match head {
            Ok(head) => head,
            Err(error) => return Ok(Err(error)),
        };
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while let Some(frame) = reader.next().await? {
            bytes += frame.body.len();
            if bytes > MAX_BYTES {
                return Err(format!("an answer is longer than {MAX_BYTES} bytes"));
            }
            frames.push(frame);
        }
        Ok(Ok((head, frames)))
    };
    timeout(within, all)
        .await
        .unwrap_or_else(|_| Err(format!("no whole answer within {} s", within.as_secs())))
        .map_err(broken)
}

/// The bodies of data frames, one after the other.
pub(super) fn joined(mut frames: Vec<Frame>) -> Bytes {
    if frames.len() == 1 {
        return frames.remove(0).body;
    }
    let mut all = BytesMut::with_capacity(frames.iter().map(|frame| frame.body.len()).sum());
    for frame in frames {
        all.extend_from_slice(&frame.body);
    }
    all.freeze()
}
