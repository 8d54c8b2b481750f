//! Streams over connections that are cut at any byte: every frame once and in order.

use std::time::Duration;

use crate::server::{self, Answer, Seen};
use ash_client::{Client, Error, Event, Frame, Message, Reconnect, Step, StreamOptions};

const SESSION: &str = "0199a000-0000-7000-8000-000000000001";
const EPOCH: u64 = 1 << 32;

/// A generator that repeats itself for a seed (Knuth's MMIX constants): the tests need no better one.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// The frames of a turn: entries of one to three frames, the last one `done`.
fn turn(entries: u64) -> Vec<Frame> {
    let mut frames = Vec::new();
    for entry in 0..entries {
        for k in 0..=entry % 3 {
            frames.push(Frame {
                event: "text_delta".into(),
                data: format!(r#"{{"delta":"{entry} and {k} – ä"}}"#),
                id: Some(format!("{}.{k}", EPOCH + 2 + entry)),
            });
        }
    }
    let done = Some(format!("{}.0", EPOCH + 2 + entries));
    frames.push(Frame { event: "done".into(), data: format!(r#"{{"sessionId":"{SESSION}"}}"#), id: done });
    frames
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    let texts = frames.iter().map(|frame| {
        let id = frame.id.as_ref().map_or_else(String::new, |id| format!("id: {id}\n"));
        format!("event: {}\ndata: {}\n{id}\n: keep-alive\n\n", frame.event, frame.data)
    });
    texts.collect::<Vec<_>>().concat().into_bytes()
}

fn start_frame() -> Frame {
    let data = format!(r#"{{"sessionId":"{SESSION}","version":"0"}}"#);
    Frame { event: "session_start".into(), data, id: None }
}

/// What a server that keeps the contract answers to a request.
fn answer_of(frames: &[Frame], seen: &Seen) -> Vec<u8> {
    if seen.line.starts_with("POST") {
        return [bytes(&[start_frame()]), bytes(frames)].concat();
    }
    let after = seen.header("last-event-id").expect("a position");
    let from =
        frames.iter().position(|frame| frame.id.as_deref() == Some(after)).expect("a position that was sent") + 1;
    bytes(&frames[from..])
}

fn client(address: std::net::SocketAddr) -> Client {
    let quick = Reconnect { first: Duration::from_millis(1), longest: Duration::from_millis(2), attempts: 50 };
    Client::new(&format!("http://{address}"), None).unwrap().with_reconnect(quick)
}

async fn read_all(mut stream: ash_client::FrameStream) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some(frame) = stream.next().await {
        frames.push(frame.unwrap());
    }
    frames
}

#[tokio::test]
async fn every_frame_once_and_in_order_wherever_it_is_cut() {
    for seed in 0..60 {
        let frames = turn(40);
        let expected: Vec<Frame> = [vec![start_frame()], frames.clone()].concat();
        let mut random = Random(seed);
        let mut first = true;
        let (address, requests) = server::start(move |seen| {
            let kind = random.below(8);
            let first = std::mem::take(&mut first);
            match kind {
                0 if !first => Answer::Whole(503, "retry-after: 0\r\n", r#"{"error":"busy","statusCode":503}"#.into()),
                1 => Answer::Close,
                _ => {
                    let bytes = answer_of(&frames, seen);
                    let send = random.below(if kind < 4 { 200 } else { bytes.len() + 200 });
                    Answer::Stream { bytes, send, clean: random.below(4) == 0 }
                }
            }
        })
        .await;
        let stream = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap();
        assert_eq!(read_all(stream).await, expected, "seed {seed}");

        let requests = requests.lock().unwrap();
        let key = requests[0].header("idempotency-key").expect("a key").to_owned();
        for request in requests.iter() {
            if request.line.starts_with("POST") {
                assert_eq!(request.header("idempotency-key"), Some(key.as_str()));
                assert_eq!(request.body, requests[0].body);
            } else {
                assert!(request.line.contains("includePartialMessages=true"), "{}", request.line);
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_repeats_itself_is_heard_once() {
    let frames = turn(10);
    let expected = frames.clone();
    let (address, _) = server::start(move |_| {
        let bytes = [bytes(&frames[..7]), bytes(&frames[3..])].concat();
        Answer::Stream { send: bytes.len(), bytes, clean: true }
    })
    .await;
    let after = format!("{}", EPOCH + 1);
    let mut stream = client(address).stream(SESSION, Some(&after), StreamOptions::default()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(frame) = stream.next().await {
        seen.push(frame.unwrap());
    }
    assert_eq!((seen, stream.repeated()), (expected, 4));
}

#[tokio::test]
async fn what_was_withdrawn_is_told() {
    let next = 2 * EPOCH + 1;
    let seen = turn(2);
    let (address, requests) = server::start(move |request| {
        let bytes = if request.line.starts_with("POST") {
            bytes(&seen[..2])
        } else {
            bytes(&[
                Frame {
                    event: "withdrawn".into(),
                    data: format!(r#"{{"after":"{}"}}"#, EPOCH + 2),
                    id: Some(format!("{next}.0")),
                },
                Frame {
                    event: "error".into(),
                    data: r#"{"error":"interrupted"}"#.into(),
                    id: Some(format!("{next}.1")),
                },
                Frame { event: "done".into(), data: "{}".into(), id: Some(format!("{next}.2")) },
            ])
        };
        Answer::Stream { send: bytes.len(), bytes, clean: true }
    })
    .await;
    let stream = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap();
    let frames = read_all(stream).await;
    let Event::Withdrawn { after } = frames[2].read().unwrap() else { panic!("{:?}", frames[2]) };
    assert_eq!(after, (EPOCH + 2).to_string());
    assert!(matches!(frames.last().unwrap().read().unwrap(), Event::Done { session_id: None }));
    assert_eq!(requests.lock().unwrap()[1].header("last-event-id"), Some(format!("{}.0", EPOCH + 3).as_str()));
}

#[tokio::test]
async fn following_goes_on_after_a_turn() {
    let frames = turn(2);
    let last = frames.last().unwrap().id.clone().unwrap();
    let more =
        Frame { event: "text_delta".into(), data: r#"{"delta":"x"}"#.into(), id: Some(format!("{}.0", EPOCH + 99)) };
    let later = more.clone();
    let (address, requests) = server::start(move |seen| {
        let bytes = if seen.header("last-event-id") == Some(&last) {
            bytes(std::slice::from_ref(&later))
        } else {
            bytes(&frames)
        };
        Answer::Stream { send: bytes.len(), bytes, clean: true }
    })
    .await;
    let options = StreamOptions { follow: true, include_partial_messages: false };
    let mut stream = client(address).stream(SESSION, None, options).await.unwrap();
    let mut frame = stream.next().await.unwrap().unwrap();
    while frame != more {
        frame = stream.next().await.unwrap().unwrap();
    }
    assert_eq!(stream.reconnects(), 1);
    assert!(requests.lock().unwrap().iter().all(|seen| seen.line.contains("follow=true")));
}

#[tokio::test]
async fn a_lost_connection_and_its_return_are_told_once() {
    let frames = turn(4);
    let served = frames.clone();
    let mut answers = 0;
    let (address, _) = server::start(move |seen| {
        answers += 1;
        match answers {
            1 => Answer::Stream { bytes: bytes(&served[..3]), send: usize::MAX, clean: true },
            2 | 3 => Answer::Whole(503, "retry-after: 0\r\n", r#"{"error":"busy","statusCode":503}"#.into()),
            _ => Answer::Stream { bytes: answer_of(&served, seen), send: usize::MAX, clean: true },
        }
    })
    .await;
    let mut stream = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap();
    let mut steps = Vec::new();
    while let Some(step) = stream.step().await {
        steps.push(step.unwrap());
    }
    let seen = |frames: &[Frame]| frames.iter().cloned().map(Step::Frame).collect::<Vec<_>>();
    assert_eq!(steps[..3], seen(&frames[..3]));
    let Step::Lost { reason } = &steps[3] else { panic!("{:?}", steps[3]) };
    assert!(reason.contains("it ended before the turn was done"), "{reason}");
    assert_eq!(steps[4], Step::Resumed { after: frames[2].id.clone() });
    assert_eq!(steps[5..], seen(&frames[3..]));
}

#[tokio::test]
async fn a_stream_from_now_on_begins_where_it_was_opened_wherever_it_is_cut() {
    let frames = turn(2);
    let begin = (EPOCH + 1).to_string();
    let served = (frames.clone(), format!("{begin}.0"));
    let mut answers = 0;
    let (address, requests) = server::start(move |_| {
        answers += 1;
        if answers == 1 {
            return Answer::Behind { after: served.1.clone(), bytes: bytes(&[start_frame()]) };
        }
        Answer::Stream { bytes: bytes(&served.0), send: usize::MAX, clean: true }
    })
    .await;
    let stream = client(address).stream(SESSION, None, StreamOptions::default()).await.unwrap();
    assert_eq!(stream.position(), Some(format!("{begin}.0")));
    assert_eq!(read_all(stream).await[1..], frames);
    assert_eq!(requests.lock().unwrap()[1].header("last-event-id"), Some(format!("{begin}.0").as_str()));
}

#[tokio::test]
async fn a_message_whose_server_died_behind_a_proxy_is_sent_again_under_its_key() {
    let frames = turn(2);
    let served = frames.clone();
    let mut answers = 0;
    let (address, requests) = server::start(move |seen| {
        answers += 1;
        match answers {
            1 => Answer::Whole(502, "", "<html>502 Bad Gateway</html>".into()),
            2 => Answer::Whole(504, "", "<html>504 Gateway Time-out</html>".into()),
            _ => Answer::Stream { bytes: answer_of(&served, seen), send: usize::MAX, clean: true },
        }
    })
    .await;
    let stream = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap();
    assert_eq!(read_all(stream).await[1..], frames);
    let requests = requests.lock().unwrap();
    let keys: Vec<_> = requests.iter().map(|seen| seen.header("idempotency-key").unwrap()).collect();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn a_refusal_says_the_servers_sentence_at_once() {
    let (address, requests) = server::start(|_| {
        Answer::Whole(503, "retry-after: 7\r\n", r#"{"error":"No sandbox is free.","statusCode":503}"#.into())
    })
    .await;
    let error = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap_err();
    assert_eq!((error.status(), error.to_string().as_str()), (Some(503), "No sandbox is free."));
    assert_eq!(error.hint().as_deref(), Some("try again in 7 s"));
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn attempts_end() {
    let (address, requests) = server::start(|_| Answer::Close).await;
    let mut stream = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap();
    assert!(matches!(stream.next().await, Some(Err(Error::Cut { .. }))));
    assert!(stream.next().await.is_none());
    // The client library may itself repeat what surely did not arrive, so this is the least.
    assert!(requests.lock().unwrap().len() >= 50);
}

#[tokio::test]
async fn a_session_that_is_gone_ends_the_stream_with_the_servers_sentence() {
    let frames = turn(5);
    let (address, _) = server::start(move |seen| {
        if seen.line.starts_with("POST") {
            Answer::Stream { bytes: bytes(&frames), send: 100, clean: false }
        } else {
            Answer::Whole(404, "", r#"{"error":"Session not found","statusCode":404}"#.into())
        }
    })
    .await;
    let mut stream = client(address).send_message(SESSION, &Message::text("hello")).await.unwrap();
    let mut last = stream.next().await;
    while let Some(Ok(_)) = last {
        last = stream.next().await;
    }
    let error = last.unwrap().unwrap_err();
    assert_eq!((error.to_string(), error.status()), (format!("Session not found: {SESSION}"), Some(404)));
    assert!(error.hint().unwrap().contains("ash session list"));
}
