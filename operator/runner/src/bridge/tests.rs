#![allow(clippy::unwrap_used)]

use std::cell::Cell;

use ash_core::{EntryFlags, EntryKind, Epoch};
use ash_protocol::{message::Progress, version};
use futures::future::join_all;
use serde::de::IgnoredAny;
use tokio::{io::AsyncWriteExt, net::UnixStream};

use super::*;

const BOUND: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(3600);

fn interrupt() -> Request {
    Request::Interrupt { turn: None }
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
    let serving = bridge.serve(greeted, Sequence::START, false, std::future::pending(), |_| Ok(Duration::ZERO));
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
    let serving = bridge.serve(greeted, Sequence::START, false, std::future::pending(), |_| {
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

#[test]
fn a_full_log_is_no_violation_of_the_protocol() {
    let refused = ash_core::intake::Refused::Overrun;
    assert!(ConnectionError::Entry(NotTaken::Refused(refused)).is_violation());
    let full = ash_core::meter::LogFull { quota_bytes: 1 };
    assert!(!ConnectionError::Entry(NotTaken::Full(full)).is_violation());
}
