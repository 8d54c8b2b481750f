//! Recorded lines of Claude Code, mutated: whatever it prints, the session goes on.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "random numbers and a test")]

use std::rc::Rc;

use ash_protocol::{
    EntryKind, Epoch,
    claude::Line,
    message::{BridgeEvent, Claimed},
    options::SessionOptions,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Driver, Session};
use crate::{
    claude::{lines::LineSplitter, partials::Partials},
    log::Log,
    shared::Shared,
    turn::{MAX_OPEN_PERMISSIONS, Turns},
};

/// Mutated lines per run, in all.
const LINES: usize = 1_000_000;

/// Lines that are longer are used, too, but rarely: the time of the test is bounded.
const SHORT_BYTES: usize = 1500;

const EPOCH: Epoch = Epoch(1);

const RESULT: &[u8] = br#"{"type":"result","subtype":"success","is_error":false}"#;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut lines = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            lines.extend(std::fs::read(path).unwrap().split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
        }
    }
    lines.retain(|line| !line.is_empty());
    assert!(lines.len() > 500, "the corpus is there");
    lines
}

/// Bytes that mean something to a parser of JSON lines.
const PIECES: [&[u8]; 16] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"\0",
    b"\xff",
    b"\n",
    b"null",
    b"1e999",
    br#""type":"result""#,
    br#""type":"control_request","#,
    br#""uuid":"00000000-0000-0000-0000-000000000001","#,
];

fn mutate(random: &mut Random, line: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(3) {
        let at = random.below(line.len());
        match random.below(7) {
            0 if !line.is_empty() => line[at] = random.next() as u8,
            1 if !line.is_empty() => drop(line.remove(at)),
            2 => line.truncate(at),
            3 => {
                let piece = PIECES[random.below(PIECES.len())];
                line.splice(at..at, piece.iter().copied());
            }
            4 => {
                let end = at + random.below(line.len() - at);
                let copy = line[at..end].to_vec();
                line.splice(at..at, copy);
            }
            5 => {
                let from = random.below(other.len());
                line.truncate(at);
                line.extend_from_slice(&other[from..]);
            }
            // As recorded.
            _ => {}
        }
    }
}

fn driver() -> (Rc<Shared>, Driver) {
    let shared = Rc::new(Shared::new("/nowhere".into()));
    let (_, commands) = mpsc::channel(1);
    let mut driver = Driver::new(shared.clone(), commands, "/nowhere".into());
    *shared.log.borrow_mut() = Some(Log::new(EPOCH));
    driver.session = Some(Session {
        id: Uuid::nil(),
        epoch: EPOCH,
        how: Claimed::Live,
        options: SessionOptions::default(),
        turns: Turns::default(),
        partials: Partials::default(),
        transcript: None,
        awaited: None,
        has_conversation: false,
        interrupt: None,
        restart: None,
        rests: false,
    });
    (shared, driver)
}

/// Looks at what was logged and takes it as committed.
fn check(shared: &Shared, next: &mut u32, ended: &mut usize) {
    let mut log = shared.log.borrow_mut();
    let log = log.as_mut().unwrap();
    while let Some(entry) = log.next_unsent() {
        assert_eq!(entry.sequence, EPOCH.sequence(*next));
        *next += 1;
        *ended += usize::from(entry.ends_turn());
        match entry.kind {
            EntryKind::Claude => drop(Line::parse(&entry.body).unwrap()),
            EntryKind::Partial => assert_eq!(Line::parse(&entry.body).unwrap(), Line::Partial),
            EntryKind::Bridge => drop(serde_json::from_slice::<BridgeEvent>(&entry.body).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    log.acknowledge(log.last());
}

/// Feeds mutated lines to a session and says how many there were.
async fn feed(seed: u64, lines: usize, corpus: &[Vec<u8>]) {
    let mut random = Random(seed);
    let short: Vec<&Vec<u8>> = corpus.iter().filter(|line| line.len() <= SHORT_BYTES).collect();
    let (shared, mut driver) = driver();
    let mut splitter = LineSplitter::new(100_000);
    let (mut next, mut ended, mut turns, mut fed) = (2, 0, 0_u128, 0);
    while fed < lines {
        if driver.session.as_ref().unwrap().turns.running().is_none() {
            turns += 1;
            driver.session.as_mut().unwrap().turns.begin(Uuid::from_u128(turns), EPOCH.sequence(2), 1000);
        }
        let mut bytes = Vec::new();
        for _ in 0..16 {
            let mut line = match random.below(100) {
                0 => corpus[random.below(corpus.len())].clone(),
                _ => short[random.below(short.len())].clone(),
            };
            let other = short[random.below(short.len())];
            mutate(&mut random, &mut line, other);
            bytes.append(&mut line);
            bytes.push(b'\n');
            fed += 1;
        }
        let cut = random.below(bytes.len());
        for part in [&bytes[..cut], &bytes[cut..]] {
            splitter.buffer().extend_from_slice(part);
            while let Some(piece) = splitter.next_piece() {
                driver.piece(piece).await;
            }
        }
        check(&shared, &mut next, &mut ended);
        assert!(driver.session.as_ref().unwrap().turns.open_permissions().len() <= MAX_OPEN_PERMISSIONS);
    }
    // The session still works: a result ends the turn that runs, if none ended it before.
    splitter.buffer().extend_from_slice(b"\n");
    splitter.buffer().extend_from_slice(RESULT);
    splitter.buffer().extend_from_slice(b"\n");
    while let Some(piece) = splitter.next_piece() {
        driver.piece(piece).await;
    }
    check(&shared, &mut next, &mut ended);
    assert!(driver.session.as_ref().unwrap().turns.running().is_none());
    assert_eq!(ended as u128, turns);
}

#[test]
fn a_million_mutated_lines_end_nothing() {
    let corpus = corpus();
    let threads = 4;
    std::thread::scope(|scope| {
        for seed in 1..=threads {
            let corpus = &corpus;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(feed(seed, LINES / threads as usize, corpus));
            });
        }
    });
}
