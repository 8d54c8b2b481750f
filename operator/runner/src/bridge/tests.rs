#![allow(clippy::unwrap_used)]

use std::{cell::Cell, future::pending};

use ash_core::{EntryFlags, EntryKind, Epoch};
use ash_protocol::{frame::MAX_BODY_BYTES, message::Progress, version};
use futures::future::join_all;
use serde::de::IgnoredAny;
use tokio::{io::AsyncWriteExt, net::UnixStream};

use super::*;
use crate::{
    hub::NotTaken,
    limits::{COMMIT_BYTES, LATE_LINES},
};

const BOUND: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(3600);

fn interrupt() -> Request {
    Request::Interrupt { turn: None }
}

fn budget() -> Arc<Budget> {
    Budget::new(0, Arc::default())
}

fn within<'a>(budget: &'a Arc<Budget>, uncommitted_bytes: &'a (dyn Fn() -> usize + Send + Sync)) -> Reading<'a> {
    Reading { budget, uncommitted_bytes }
}

/// A greeted connection and the bridge's end of it.
async fn connect() -> (Greeted, UnixStream) {
    let (host, mut sandbox) = UnixStream::pair().unwrap();
    let hello = Hello {
        protocol: version::CURRENT,
        bridge: "0".to_owned(),
        sandbox: "s".to_owned(),
        progress: Progress::Warm,
        gateway_port: None,
    };
    write(&mut sandbox, &Frame::json(FrameKind::Hello, 0, &hello)).await;
    (greet(crate::enclosure::Arrived::Unix(host)).await.unwrap(), sandbox)
}

async fn write(stream: &mut UnixStream, frame: &Frame) {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
}

fn event(n: u32) -> Frame {
    let body = Bytes::from_static(b"{}");
    Frame::event(&Entry { sequence: Epoch(1).sequence(n), kind: EntryKind::Claude, flags: EntryFlags::default(), body })
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_never_answers_is_waited_for_up_to_the_bound() {
    let (bridge, request) = (Bridge::new(Arc::default()), interrupt());
    let (greeted, _sandbox) = connect().await;
    let budget = budget();
    let serving =
        bridge.serve(greeted, Sequence::START, false, pending(), within(&budget, &|| 0), |_| Ok(Duration::ZERO));
    let asking = bridge.call_within::<IgnoredAny>(&request, BOUND);
    tokio::select! {
        error = serving => panic!("{error}"),
        answer = asking => assert!(matches!(answer, Err(RequestError::Silent(BOUND))), "{answer:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_no_bridge_takes_are_waited_for_up_to_the_bound() {
    let metrics = Arc::<Metrics>::default();
    let (bridge, request) = (Bridge::new(Arc::clone(&metrics)), interrupt());
    // More than there is room for.
    let asking = (0..2 * BRIDGE_QUEUE).map(|_| bridge.call_within::<IgnoredAny>(&request, BOUND));
    for answer in join_all(asking).await {
        assert!(matches!(answer, Err(RequestError::Silent(_))), "{answer:?}");
    }
    assert_eq!(metrics.requests_waited.get(), BRIDGE_QUEUE as u64);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_not_read_from_while_its_owner_pauses_it() {
    let bridge = Bridge::new(Arc::default());
    let (greeted, mut sandbox) = connect().await;
    write(&mut sandbox, &event(2)).await;
    let deliveries = Cell::new(0);
    let budget = budget();
    let serving = bridge.serve(greeted, Sequence::START, false, pending(), within(&budget, &|| 0), |_| {
        deliveries.set(deliveries.get() + 1);
        Ok(PAUSE)
    });
    tokio::pin!(serving);
    let mut serve_for = async |while_waiting| {
        tokio::select! {
            error = &mut serving => panic!("{error}"),
            () = sleep(while_waiting) => {}
        }
    };
    serve_for(PAUSE / 2).await;
    write(&mut sandbox, &event(3)).await;
    serve_for(PAUSE / 4).await;
    assert_eq!(deliveries.get(), 1);
    serve_for(PAUSE / 2).await;
    assert_eq!(deliveries.get(), 2);
}

/// Serves a connection whose bridge sends these frames behind a request; how the connection ended.
async fn sent_behind_a_download(frames: Vec<Frame>) -> ConnectionError {
    let bridge = Bridge::new(Arc::default());
    let (greeted, mut sandbox) = connect().await;
    let download = bridge.download(&Request::ListTree { limit: 1 }).await;
    let writing = async {
        for frame in &frames {
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes);
            if sandbox.write_all(&bytes).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let budget = budget();
    let serving = bridge.serve(greeted, Sequence::START, false, pending(), within(&budget, &|| 0), |incoming| {
        assert!(!matches!(incoming, Incoming::Beside { .. }), "what was asked for has its own measure");
        Ok(Duration::ZERO)
    });
    let error = tokio::select! {
        error = serving => error,
        () = writing => unreachable!(),
    };
    drop(download);
    error
}

#[tokio::test]
async fn a_bridge_that_sends_more_data_than_it_was_granted_is_cut_off() {
    let piece = Bytes::from(vec![0; MAX_DATA_BYTES]);
    let granted = usize::try_from(ash_protocol::frame::INITIAL_CREDIT).unwrap() / MAX_DATA_BYTES;
    let too_many_bytes = vec![Frame::data(1, 0, piece); granted + 1];
    let end = Frame::data(1, ash_protocol::frame::DATA_FILE_END, Bytes::new());
    let too_many_pieces = vec![end; crate::limits::DOWNLOAD_PIECES + 1];
    let nothing = vec![Frame::data(1, 0, Bytes::new())];
    let too_long = vec![Frame::data(1, 0, Bytes::from(vec![0; MAX_DATA_BYTES + 1]))];
    let no_size = vec![Frame::data(1, ash_protocol::frame::DATA_HOLE, Bytes::from_static(b"long"))];
    for frames in [too_many_bytes, too_many_pieces, nothing, too_long, no_size] {
        let error = sent_behind_a_download(frames).await;
        assert!(error.is_violation(), "{error}");
    }
}

#[tokio::test]
async fn data_comes_within_its_credit_and_what_is_dropped_is_given_up() {
    let bridge = Bridge::new(Arc::default());
    let (greeted, mut sandbox) = connect().await;
    let budget = budget();
    let serving =
        bridge.serve(greeted, Sequence::START, false, pending(), within(&budget, &|| 0), |_| Ok(Duration::ZERO));
    let mut buffer = BytesMut::new();
    let mut next = async |sandbox: &mut UnixStream| loop {
        if let Some(frame) = Frame::decode(&mut buffer).unwrap() {
            return frame;
        }
        tokio::io::AsyncReadExt::read_buf(sandbox, &mut buffer).await.unwrap();
    };
    let asking = async {
        let mut download = bridge.download(&Request::ListTree { limit: 1 }).await;
        assert_eq!(next(&mut sandbox).await.kind, FrameKind::Welcome);
        assert_eq!(next(&mut sandbox).await.kind, FrameKind::Request);
        write(&mut sandbox, &Frame::data(1, 0, vec![1; MAX_DATA_BYTES])).await;
        assert_eq!(download.next().await.unwrap().bytes.len(), MAX_DATA_BYTES);
        let credit = next(&mut sandbox).await;
        let granted = u32::try_from(MAX_DATA_BYTES).unwrap().to_le_bytes();
        assert_eq!((credit.kind, credit.number, &credit.body[..]), (FrameKind::Credit, 1, &granted[..]));
        drop(download);
        let given_up = next(&mut sandbox).await;
        let request: Request = serde_json::from_slice(&given_up.body).unwrap();
        assert!(matches!(request, Request::Cancel { request: 1 }), "{request:?}");
    };
    tokio::select! {
        error = serving => panic!("{error}"),
        () = asking => {}
    }
}

#[test]
fn a_full_log_is_no_violation_of_the_protocol() {
    let refused = ash_core::intake::Refused::Overrun;
    assert!(ConnectionError::Entry(NotTaken::Refused(refused)).is_violation());
    let full = ash_core::meter::LogFull { quota_bytes: 1 };
    assert!(!ConnectionError::Entry(NotTaken::Full(full)).is_violation());
}

/// An event with a body of so many bytes.
fn long(n: u32, bytes: usize) -> Frame {
    Frame { body: vec![b'x'; bytes].into(), ..event(n) }
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_who_is_ahead_waits_and_who_is_not_is_read() {
    let budget = budget();
    let most = Frame::announced(&long(1, MAX_BODY_BYTES).header()).unwrap();
    let all = budget.draw(most).unwrap();
    let (ahead, other) = (Bridge::new(Arc::default()), Bridge::new(Arc::default()));
    let ((first, mut first_bridge), (second, mut second_bridge)) = (connect().await, connect().await);
    let (counted, of_other) = (Cell::new(0), Cell::new(0));
    let count = |incoming: Incoming, count: &Cell<usize>| {
        if let Incoming::Entries(entries) = incoming {
            count.set(count.get() + entries.len());
        }
        Ok(Duration::ZERO)
    };
    let uncommitted = || COMMIT_BYTES + 1;
    let serving = ahead.serve(first, Sequence::START, false, pending(), within(&budget, &uncommitted), |incoming| {
        count(incoming, &counted)
    });
    let serving_other = other.serve(second, Sequence::START, false, pending(), within(&budget, &|| 0), |incoming| {
        count(incoming, &of_other)
    });
    tokio::pin!(serving, serving_other);
    let mut serve_for = async |time| {
        tokio::select! {
            error = &mut serving => panic!("{error}"),
            error = &mut serving_other => panic!("{error}"),
            () = sleep(time) => {}
        }
    };
    // Both wait for the first bytes before they are looked at again.
    write(&mut first_bridge, &event(2)).await;
    serve_for(PAUSE).await;
    for n in 2..5 {
        write(&mut first_bridge, &event(n + 1)).await;
        write(&mut second_bridge, &event(n)).await;
        serve_for(PAUSE).await;
    }
    assert_eq!((counted.get(), of_other.get()), (0, 3));
    assert_eq!((ahead.holds(), other.holds()), (1, 0), "one is being held back");
    drop(all);
    serve_for(PAUSE).await;
    assert_eq!((counted.get(), ahead.holds()), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_long_line_waits_for_room_and_gives_it_back() {
    let budget = budget();
    let line = long(2, 8 << 20);
    let bytes = Frame::announced(&line.header()).unwrap();
    let most = Frame::announced(&long(1, MAX_BODY_BYTES).header()).unwrap();
    let others = budget.draw(most - bytes + 1).unwrap();
    let bridge = Bridge::new(Arc::default());
    let (greeted, mut sandbox) = connect().await;
    let taken = Cell::new(false);
    let serving = bridge.serve(greeted, Sequence::START, false, pending(), within(&budget, &|| 0), |incoming| {
        taken.set(taken.get() || matches!(incoming, Incoming::Entries(_)));
        Ok(Duration::ZERO)
    });
    tokio::pin!(serving);
    let sending = write(&mut sandbox, &line);
    tokio::pin!(sending);
    tokio::select! {
        error = &mut serving => panic!("{error}"),
        () = &mut sending => panic!("it was read without room"),
        () = sleep(PAUSE) => {}
    }
    drop(others);
    tokio::select! {
        error = &mut serving => panic!("{error}"),
        () = &mut sending => {}
    }
    tokio::select! {
        error = &mut serving => panic!("{error}"),
        () = sleep(BOUND) => {}
    }
    assert!(taken.get());
    assert!(budget.draw(most).is_some(), "all of it is given back");
}

#[tokio::test(start_paused = true)]
async fn a_long_line_that_does_not_come_holds_no_room_for_ever() {
    let budget = budget();
    let most = Frame::announced(&long(1, MAX_BODY_BYTES).header()).unwrap();
    let bridge = Bridge::new(Arc::default());
    // It may happen; whoever does so again and again keeps others waiting for the room.
    for time in 1..=LATE_LINES {
        let (greeted, mut sandbox) = connect().await;
        let serving =
            bridge.serve(greeted, Sequence::START, false, pending(), within(&budget, &|| 0), |_| Ok(Duration::ZERO));
        sandbox.write_all(&long(2, 1 << 20).header()).await.unwrap();
        let trickle = async {
            loop {
                sleep(LONG_LINE / 10).await;
                sandbox.write_all(b"x").await.unwrap();
            }
        };
        tokio::select! {
            error = serving => assert_eq!(error.is_violation(), time == LATE_LINES, "{error}"),
            () = trickle => {}
        }
        assert!(budget.draw(most).is_some());
    }
}
