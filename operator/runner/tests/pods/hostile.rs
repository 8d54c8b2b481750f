//! What somebody can do who reaches the port of bridges and is no bridge, or another one than it says.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ash_core::{
    ports::{PodState, Runner as _},
    session::{Closing, SessionState},
};
use ash_protocol::{
    frame::{Frame, FrameKind},
    message::{Hello, Progress, Welcome},
    preamble::{Answer, MAX_LINE_BYTES, Preamble, Proof, line, take_line},
    version,
};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    stand_in::{StandIn, said},
    world::{DEADLINE, NODE, World, eventually, token, valid},
};

/// Less than the 10 s in which a connection has to send its first line.
const BEFORE_SILENCE_ENDS: Duration = Duration::from_secs(8);

/// Dials and says something; the answer, where one comes.
async fn dial(world: &World, first: &[u8]) -> (Option<Answer>, TcpStream) {
    let mut stream = TcpStream::connect(world.bridges).await.unwrap();
    let _ = stream.write_all(first).await;
    let mut received = BytesMut::new();
    let answer = timeout(DEADLINE, async {
        loop {
            if let Some(found) = take_line(&mut received).unwrap() {
                return Some(serde_json::from_slice(&found).unwrap());
            }
            match stream.read_buf(&mut received).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    });
    (answer.await.unwrap(), stream)
}

fn with_token(token: &str) -> Vec<u8> {
    line(&Preamble::of_bridge(Proof::Token(ash_protocol::fleet::Hidden(token.to_owned())))).to_vec()
}

fn with_ticket(ticket: &str) -> Vec<u8> {
    line(&Preamble::of_bridge(Proof::Ticket(ash_protocol::fleet::Hidden(ticket.to_owned())))).to_vec()
}

async fn refused(world: &World, first: &[u8]) -> Answer {
    let (answer, _) = dial(world, first).await;
    let answer = answer.expect("an answer");
    assert!(!answer.ok && answer.ticket.is_none());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_who_proves_nothing() {
    let world = World::with_stand_in().await;
    let _life = world.start().await;
    let row = world.row(None);
    assert!(!refused(&world, &with_token("nonsense")).await.is_final, "the kubelet may give it another one");
    let elsewhere = refused(&world, &with_token(&valid(&row, "n2"))).await;
    assert!(elsewhere.error.unwrap().contains("n2"));
    assert!(!refused(&world, &with_ticket("e30.e30")).await.is_final);
    // A pod that nobody made a row for: it ends itself.
    assert_eq!(world.reviews.asked.load(Ordering::SeqCst), 0, "nobody has to be asked about these");
    assert!(refused(&world, &with_token(&token("stranger", "uid-1", NODE, "valid"))).await.is_final);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{}\n", b"\0\xff\n", &vec![b'x'; 2 * MAX_LINE_BYTES]] {
        assert!(dial(&world, garbage).await.0.is_none(), "closed without a word");
    }
    *world.reviews.away.lock().unwrap() = true;
    let away = refused(&world, &with_token(&valid(&row, NODE))).await;
    assert!(!away.is_final && away.error.unwrap().contains("API server"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_or_ticket_of_one_pod_is_worth_nothing_for_another() {
    let world = World::with_stand_in().await;
    let _life = world.start().await;
    let pod = world.warm_pod().await;
    let row = world.rows.known.lock().unwrap()[&pod.sandbox].clone();
    // A pod of the same name that came later, with another uid.
    let impostor = token(&row.pod, "uid-other", NODE, "valid");
    assert!(refused(&world, &with_token(&impostor)).await.is_final);
    // Who has the pod's own token is the pod: it gets what the pod has, and loses it by what it says.
    let other = world.row(None);
    let (answer, mut stream) = dial(&world, &with_token(&valid(&other, NODE))).await;
    let ticket = answer.unwrap().ticket.unwrap().0;
    let mut changed = ticket.clone().into_bytes();
    changed[5] ^= 1;
    refused(&world, &with_ticket(&String::from_utf8(changed).unwrap())).await;
    let hello = Hello {
        protocol: version::CURRENT,
        bridge: "0".to_owned(),
        sandbox: pod.sandbox.to_string(),
        progress: Progress::Bound {
            session: uuid::Uuid::new_v4(),
            epoch: ash_core::Epoch(1),
            last: ash_core::Sequence::START,
            turn: None,
            permissions: Vec::new(),
        },
        gateway_port: None,
    };
    let mut bytes = BytesMut::new();
    Frame::json(FrameKind::Hello, 0, &hello).encode(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let mut received = BytesMut::new();
    let welcome = loop {
        if let Some(frame) = Frame::decode(&mut received).unwrap() {
            break frame;
        }
        assert!(timeout(DEADLINE, stream.read_buf(&mut received)).await.unwrap().unwrap() > 0);
    };
    let welcome: Welcome = serde_json::from_slice(&welcome.body).unwrap();
    assert!(welcome.overtaken, "a session that nobody gave it is not its own");
    eventually("its sandbox is over", async || {
        (world.rows.known.lock().unwrap()[&other.id].state == PodState::Deleting).then_some(())
    })
    .await;
    assert_eq!(world.rows.known.lock().unwrap()[&pod.sandbox].state, PodState::Warm, "its neighbour is not touched");
    assert!(refused(&world, &with_token(&valid(&other, NODE))).await.is_final);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_many_keep_no_bridge_out() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    // More than an address may have: those beyond are closed at once, the others when their time is over.
    let mut open = Vec::new();
    for _ in 0..12 {
        let mut stream = TcpStream::connect(world.bridges).await.unwrap();
        let _ = stream.write_all(b"{\"ash\":").await;
        open.push(stream);
    }
    // A bridge of the same address comes in as soon as there is room; those of others never waited.
    let pod = world.warm_pod().await;
    for stream in &mut open {
        let mut byte = [0; 1];
        assert!(matches!(timeout(DEADLINE, stream.read(&mut byte)).await.unwrap(), Ok(0) | Err(_)));
    }
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dials_with_garbage_makes_the_api_server_be_asked_at_a_rate() {
    let world = World::with_stand_in().await;
    let _life = world.start().await;
    let row = world.row(None);
    let began = Instant::now();
    for number in 0..500 {
        // Each is another one, and looks as if it could be a pod's.
        let forged = token(&row.pod, &format!("uid-{number}"), NODE, "forged");
        let mut stream = TcpStream::connect(world.bridges).await.unwrap();
        stream.write_all(&with_token(&forged)).await.unwrap();
        let mut said = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut said)).await.unwrap();
        assert!(!String::from_utf8_lossy(&said).contains("\"ok\":true"));
    }
    // As documented: 8 at once, then 2 in a second.
    let asked = world.reviews.asked.load(Ordering::SeqCst);
    assert!(asked <= 8 + 2 * (began.elapsed().as_secs() + 1), "{asked} times for 500 dials");
    // The same one again is known.
    let same = with_token(&token(&row.pod, "uid-same", NODE, "forged"));
    eventually("it may ask again", async || dial(&world, &same).await.0).await;
    let asked = world.reviews.asked.load(Ordering::SeqCst);
    for _ in 0..20 {
        refused(&world, &same).await;
    }
    assert_eq!(world.reviews.asked.load(Ordering::SeqCst), asked);
    // The pod itself comes in.
    let pod = world.pod(&row, &valid(&row, NODE));
    world.wait_state(&pod, PodState::Warm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_at_many_addresses_keeps_nobody_out() {
    let world = World::with_stand_in().await;
    let _life = world.start().await;
    let mut silent = Vec::new();
    for host in 2..=60 {
        for _ in 0..8 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
            silent.push(socket.connect(world.bridges).await.unwrap());
        }
    }
    let row = world.row(None);
    let first_line = with_token(&valid(&row, NODE));
    let (answer, _stream) = timeout(BEFORE_SILENCE_ENDS, dial(&world, &first_line)).await.expect("it does not wait");
    assert!(answer.unwrap().ok);
    let mut byte = [0; 1];
    let first = timeout(BEFORE_SILENCE_ENDS, silent[0].read(&mut byte)).await.expect("the first ones have to go");
    assert!(matches!(first, Ok(0) | Err(_)));
    let last = silent.last().unwrap().try_read(&mut byte);
    assert_eq!(last.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the last ones stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_bridge_waits_for_memory_can_be_ended_and_gives_all_back() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    world.appends.send_replace(false);
    // Two of three of these fit the memory of all.
    let body = Bytes::from(vec![b' '; 24 << 20]);
    let mut sessions = Vec::new();
    for number in 1..=3 {
        let (session, mut bridge, row) = StandIn::claimed(&world, &life).await;
        let line = Frame::event(&said(session.epoch.sequence(2), body.clone()));
        if number < 3 {
            bridge.send(&line).await;
        } else {
            bridge.announce(&line).await;
        }
        sessions.push((session, bridge, row));
    }
    eventually("one waits", async || (life.metric("ash_runner_bridges_held_back_total") > 0).then_some(())).await;
    let (waiting, _, _) = &sessions[2];
    let ended = timeout(DEADLINE, life.runner.close(world.row_of(waiting).await, Closing::End)).await.unwrap();
    assert_eq!(ended.unwrap().state, SessionState::Ended);
    // One goes without a word, the other's line is written.
    sessions.truncate(1);
    world.appends.send_replace(true);
    let (session, bridge, _) = &mut sessions[0];
    bridge.acknowledged(session.epoch.sequence(2)).await;
    eventually("all is given back", async || (life.metric("ash_runner_unwritten_bytes") == 0).then_some(())).await;
}
