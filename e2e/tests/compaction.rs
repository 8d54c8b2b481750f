//! Turns that ended some time ago, whose partial messages are dropped, with the real Claude Code.

use std::str::FromStr;

use ash_client::{Event, Frame, Message, Session, StreamOptions};
use ash_core::sse::Position;
use ash_e2e::harness::{TestApp, Turn, eventually, position};

/// The session's log from a place on, to its end.
async fn replay(app: &TestApp, session: &Session, after: &str, include_partial_messages: bool) -> Vec<Frame> {
    let options = StreamOptions { include_partial_messages, follow: false };
    let stream = app.client.stream(&session.id, Some(after), options).await.expect("the stream");
    let mut frames = Turn::read(stream).await.frames;
    frames.retain(|frame| position(frame).is_some());
    frames
}

/// From and to of each `replaced` frame.
fn replaced(frames: &[Frame]) -> Vec<(Position, Position)> {
    let range = |frame: &Frame| match frame.read() {
        Ok(Event::Replaced { from, to }) => {
            let at = |text: &str| Position::from_str(text).expect("a position");
            Some((Position { frame: 0, ..at(&from) }, at(&to)))
        }
        _ => None,
    };
    frames.iter().filter_map(range).collect()
}

fn described(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(|frame| format!("{:?} {} {}", frame.id, frame.event, frame.data)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_shows_what_stands_for_dropped_partials() {
    let mut app = TestApp::builder().argument("--compact-after=2s").start().await;
    let session = app.session().await;
    let text = r#"[[burst: 300]] [[tool: Bash {"command":"echo seen"}]] [[burst: 300]]"#;
    let message = Message { include_partial_messages: true, ..Message::text(text) };
    let live = Turn::read(app.client.send_message(&session.id, &message).await.expect("a stream")).await;
    assert!(live.names().iter().filter(|name| **name == "text_delta").count() >= 600, "{:?}", live.names());
    let live: Vec<Frame> = live.frames.into_iter().filter(|frame| position(frame).is_some()).collect();
    let compacted = async || (app.metric("ash_compacted_turns_total").await == 1).then_some(());
    eventually("the turn is compacted", compacted).await;

    let all = replay(&app, &session, "0", true).await;
    let ranges = replaced(&all);
    assert!(ranges.len() >= 2, "one for each text: {ranges:?}");
    assert!(all.iter().all(|frame| frame.event != "text_delta"), "{:#?}", described(&all));
    // Every frame of the turn is there still, or in one of the stretches that are said to be gone.
    let is_gone = |frame: &&Frame| {
        let at = position(frame);
        ranges.iter().any(|(from, to)| at >= Some(*from) && at <= Some(*to))
    };
    let left: Vec<Frame> = live.iter().filter(|frame| !is_gone(frame)).cloned().collect();
    let first = position(&live[0]);
    let of_turn = |frames: &[Frame]| -> Vec<Frame> {
        frames.iter().filter(|frame| frame.event != "replaced" && position(frame) >= first).cloned().collect()
    };
    assert_eq!(described(&of_turn(&all)), described(&left));

    // Who had read half of a text is told that it does not count, and gets the message that stands for it.
    let middle = live.iter().filter(|frame| frame.event == "text_delta").nth(100).expect("a delta");
    let rest = replay(&app, &session, middle.id.as_deref().expect("an id"), true).await;
    let (from, to) = replaced(&rest[..1])[0];
    assert!(Some(from) < position(middle) && position(middle) < Some(to), "{from} {to}");
    assert!(rest.iter().any(|frame| frame.event == "message" && frame.data.contains("299")));

    // Who leaves partials out sees no difference; and a restart makes none.
    let without = replay(&app, &session, "0", false).await;
    let complete: Vec<Frame> = all.iter().filter(|frame| frame.event != "replaced").cloned().collect();
    assert_eq!(described(&without), described(&complete));
    app.kill();
    app.start_again().await;
    assert_eq!(described(&replay(&app, &session, "0", true).await), described(&all));
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(history.contains("seen"), "{history}");
}
