//! What a client saw, compared with the log.

use std::str::FromStr;

use ash_client::{Client, Event, Frame, Session, StreamOptions};
use ash_core::sse::Position;

/// Ids grow and none comes twice; and the frames that count are those that the log has in the same stretch.
///
/// # Panics
/// With the first difference.
pub async fn compare_with_log(client: &Client, session: &Session, frames: &[Frame], round: &str) {
    check_order(frames);
    let seen = without_withdrawn(frames);
    // It is read from a place where no client was, and so may be told that something is withdrawn which it never showed.
    let logged = without_withdrawn(&replay(client, session, &seen).await);
    compare(&describe(&seen), &describe(&logged), round);
}

/// A frame's place in the log, where it has one.
///
/// # Panics
/// When its id is none.
pub fn position(frame: &Frame) -> Option<Position> {
    frame.id.as_deref().map(|id| Position::from_str(id).expect("an id is a position"))
}

/// Ids grow, and none comes twice.
///
/// # Panics
/// When they do not.
pub fn check_order(frames: &[Frame]) {
    let positions: Vec<Position> = frames.iter().filter_map(position).collect();
    for pair in positions.windows(2) {
        assert!(pair[0] < pair[1], "{} is followed by {}", pair[0], pair[1]);
    }
}

/// The frames that count for a client that follows the `withdrawn` frames.
///
/// # Panics
/// When an id is none.
pub fn without_withdrawn(frames: &[Frame]) -> Vec<Frame> {
    let mut counting: Vec<Frame> = Vec::new();
    for frame in frames {
        if let Ok(Event::Withdrawn { after }) = frame.read() {
            let after = Position::from_str(&after).expect("a position");
            counting.retain(|earlier| position(earlier).is_none_or(|position| position <= after));
        } else if frame.event != "session_start" {
            counting.push(frame.clone());
        }
    }
    counting
}

/// The text of the deltas that no `replaced` frame takes back.
///
/// # Panics
/// When an id is none.
pub fn without_superseded(frames: &[Frame]) -> String {
    let mut parts: Vec<(Option<Position>, String)> = Vec::new();
    for frame in frames {
        match frame.read() {
            Ok(Event::TextDelta(text)) => parts.push((position(frame), text)),
            Ok(Event::Replaced { from, .. }) => {
                let from = Position { frame: 0, ..Position::from_str(&from).expect("a position") };
                parts.retain(|(position, _)| position.is_none_or(|position| position < from));
            }
            _ => {}
        }
    }
    parts.into_iter().map(|(_, text)| text).collect()
}

/// The same stretch of the session, read from the log.
async fn replay(client: &Client, session: &Session, seen: &[Frame]) -> Vec<Frame> {
    let first = seen.iter().find_map(position).expect("a frame with an id");
    let last = seen.iter().rev().find_map(position).expect("a frame with an id");
    let before = Position::after(ash_core::Sequence(first.sequence.0 - 1)).to_string();
    let options = StreamOptions { include_partial_messages: true, follow: true };
    let mut stream = client.stream(&session.id, Some(&before), options).await.expect("the stream");
    let mut frames = Vec::new();
    while let Some(frame) = stream.next().await {
        let frame = frame.expect("the log can be read");
        let end = position(&frame) >= Some(last);
        if frame.event != "session_start" {
            frames.push(frame);
        }
        if end {
            break;
        }
    }
    frames
}

fn describe(frames: &[Frame]) -> Vec<String> {
    frames
        .iter()
        .map(|frame| {
            let id = frame.id.as_deref().unwrap_or("-");
            format!("{id} {} {}", frame.event, frame.data.chars().take(80).collect::<String>())
        })
        .collect()
}

/// Panics with the first difference and what stands around it.
fn compare(seen: &[String], logged: &[String], round: &str) {
    let same = seen.iter().zip(logged).take_while(|(seen, logged)| seen == logged).count();
    if same < seen.len().max(logged.len()) {
        let around =
            |frames: &[String]| frames.iter().skip(same.saturating_sub(2)).take(6).cloned().collect::<Vec<_>>();
        let (seen, logged) = (around(seen), around(logged));
        panic!("{round}: the client's frames are not the log's, at {same}:\nseen {seen:#?}\nlog {logged:#?}");
    }
}
