#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::{Parsed, Parser, TooLong};
use crate::Frame;

fn read_all(parser: &mut Parser) -> Vec<Parsed> {
    std::iter::from_fn(|| parser.next().unwrap()).collect()
}

fn parse(pieces: &[&[u8]]) -> Vec<Parsed> {
    let mut parser = Parser::default();
    let mut parsed = Vec::new();
    for piece in pieces {
        parser.feed(piece);
        parsed.extend(read_all(&mut parser));
    }
    parsed
}

fn frame(event: &str, data: &str, id: Option<&str>) -> Parsed {
    Parsed::Frame(Frame { event: event.into(), data: data.into(), id: id.map(Into::into) })
}

#[test]
fn frames_and_comments() {
    let text = b"event: session_start\ndata: {}\n\n: keep-alive\n\nevent: done\ndata: {\"a\":1}\nid: 4294967297.0\n\n";
    let expected =
        [frame("session_start", "{}", None), Parsed::Comment, frame("done", "{\"a\":1}", Some("4294967297.0"))];
    assert_eq!(parse(&[text]), expected);
}

#[test]
fn the_odd_corners_of_the_format() {
    assert_eq!(
        parse(&[b"\xef\xbb\xbfdata:a\ndata: b\r\ndata\rretry: 5\nunknown: x\r\n\r\n"]),
        [frame("message", "a\nb\n", None)]
    );
    assert_eq!(
        parse(&[b"\xef\xbb", b"\xbfdata: a\r", b"\n\r", b"\ndata: b\n\n"]),
        [frame("message", "a", None), frame("message", "b", None)]
    );
    assert_eq!(parse(&[b"event: lonely\nid: 1\n\ndata: x\n\n"]), [frame("message", "x", None)]);
    assert_eq!(parse(&[b"id: a\0b\ndata: x\n\n"]), [frame("message", "x", None)]);
    assert_eq!(parse(&[b"data: unfinished\n"]), []);
    assert_eq!(parse(&[b"data: \xff\n\n"]), [frame("message", "\u{fffd}", None)]);
}

#[test]
fn a_frame_beyond_the_bound_is_refused_whole_or_in_lines() {
    for text in [&b"data: 0123456789"[..], b"data: 01234\ndata: 56789\n", b"event: 0123456789\n\n"] {
        let mut parser = Parser::new(12);
        parser.feed(text);
        assert_eq!(parser.next(), Err(TooLong(12)), "{text:?}");
    }
    let mut parser = Parser::new(12);
    parser.feed(b"data: 012345\n\ndata: 012345\n\n");
    assert_eq!(read_all(&mut parser).len(), 2);
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(text in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let whole = parse(&[&text]);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        places.extend([0, text.len()]);
        places.sort_unstable();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(parse(&pieces), whole.clone());
        let single: Vec<&[u8]> = text.chunks(1).collect();
        prop_assert_eq!(parse(&single), whole);
    }

    #[test]
    fn what_the_server_writes_comes_back(frames in prop::collection::vec(written(), 0..20)) {
        let texts: Vec<String> = frames.iter().map(|(event, data, id)| {
            let id = id.as_ref().map_or_else(String::new, |id| format!("id: {id}\n"));
            format!("event: {event}\ndata: {data}\n{id}\n")
        }).collect();
        let text = texts.concat();
        let expected: Vec<Parsed> =
            frames.iter().map(|(event, data, id)| frame(event, data, id.as_deref())).collect();
        prop_assert_eq!(parse(&[text.as_bytes()]), expected);
    }
}

/// Bytes that are often a stream: fields, ends of lines of all kinds, and anything.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"data: {\"a\":\"\xc3\xa4\"}".to_vec()),
        Just(b"event: done".to_vec()),
        Just(b"id: 1.2".to_vec()),
        Just(b": comment".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\n\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\xef\xbb\xbf".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

fn written() -> impl Strategy<Value = (String, String, Option<String>)> {
    ("[a-z_]{1,12}", "\\{[^\r\n]{0,30}\\}", prop::option::of("[0-9]{1,9}\\.[0-9]"))
}
