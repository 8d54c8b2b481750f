#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::HashSet;

use ash_protocol::tree::{Entry, EntryKind, EntryPath, Stamp};
use jiff::Timestamp;

use super::{Content, Hole, Manifest, ManifestError, Segment, Span};
use crate::{
    digest::Digest,
    limits::{MAX_ENTRIES, MAX_MANIFEST_BYTES},
};

fn path(text: &str) -> EntryPath {
    EntryPath::new(text.as_bytes()).unwrap()
}

fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry { path: path(name), mode: 0o600, modified_ns: 0, kind }
}

fn file(name: &str, size: u64) -> Entry {
    entry(name, EntryKind::File { size, stamp: Stamp { inode: 1, changed_ns: 1 }, sparse: false })
}

fn sparse(name: &str, size: u64) -> Entry {
    entry(name, EntryKind::File { size, stamp: Stamp { inode: 1, changed_ns: 1 }, sparse: true })
}

fn segment(content: &str, size: u64) -> Segment {
    Segment { digest: Digest::of(content.as_bytes()), size, packed: size + 1 }
}

fn manifest(entries: Vec<Entry>, contents: Vec<Content>, segments: Vec<Segment>) -> Result<Manifest, ManifestError> {
    Manifest::new(None, Timestamp::UNIX_EPOCH, entries, contents, segments, Vec::new(), 0)
}

#[test]
fn what_is_lost_takes_its_files_and_their_links_with_it_and_nothing_else() {
    let (shared, own, other) = (segment("shared", 5), segment("own", 3), segment("other", 3));
    let entries = vec![
        file("a", 2),
        entry("b", EntryKind::HardLink { to: path("large") }),
        sparse("large", 3 + (1 << 20) + 3),
        file("other", 3),
        file("z", 3),
    ];
    let contents = vec![
        Content::Shared { segment: 0, offset: 0, size: 2 },
        Content::Sparse { span: Span { first: 1, count: 2 }, holes: vec![Hole { before: 1, size: 1 << 20 }] },
        Content::Own(Span { first: 2, count: 1 }),
        Content::Shared { segment: 0, offset: 2, size: 3 },
    ];
    let whole = manifest(entries, contents, vec![shared, own, other]).unwrap();
    let (digest, bytes) = whole.encode().unwrap();
    assert_eq!(Manifest::decode(digest, &bytes, MAX_MANIFEST_BYTES).unwrap(), whole);
    assert!(matches!(Manifest::decode(digest, &bytes, 100), Err(ManifestError::TooLarge)));
    assert_eq!(Manifest::decode_segments(digest, &bytes, MAX_MANIFEST_BYTES).unwrap(), whole.segments);
    let left = |lost: &[Segment]| {
        let lost: HashSet<Digest> = lost.iter().map(|segment| segment.digest).collect();
        let (left, names) = whole.clone().without(&lost);
        left.check().unwrap();
        let left: Vec<String> = left.entries.iter().map(|entry| entry.path.to_string()).collect();
        (left.join(" "), names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let both = |left: &str, lost: &str| (left.to_owned(), lost.to_owned());
    assert_eq!(left(&[]), both("a b large other z", ""));
    assert_eq!(left(&[shared]), both("b large other", "a z"));
    assert_eq!(left(&[own]), both("a other z", "large b"));
    assert_eq!(left(&[other]), both("a z", "large other b"));
}

#[test]
fn holes_lie_somewhere_and_are_a_part_of_the_file() {
    let with = |holes: Vec<Hole>, size: u64| {
        let contents = vec![Content::Sparse { span: Span { first: 0, count: 1 }, holes }];
        manifest(vec![sparse("a", size)], contents, vec![segment("x", 3)])
    };
    let hole = |before, size| Hole { before, size };
    assert_eq!(with(vec![hole(0, 7), hole(1, 1 << 43)], (1 << 43) + 10).unwrap().size(), 3);
    for (holes, size) in [
        (vec![hole(2, 7)], 10),
        (vec![hole(1, 7), hole(0, 7)], 17),
        (vec![hole(1, 7), hole(1, 7)], 17),
        (vec![hole(0, 0)], 3),
        (vec![hole(0, u64::MAX), hole(1, u64::MAX)], 3),
    ] {
        assert!(matches!(with(holes, size), Err(ManifestError::Damaged(_))));
    }
}

#[test]
fn one_of_another_form_is_not_damaged() {
    let json = br#"{"form":2,"things":"that nobody knows here"}"#;
    let bytes = zstd::bulk::compress(json, 3).unwrap();
    let decoded = Manifest::decode(Digest::of(&bytes), &bytes, MAX_MANIFEST_BYTES);
    assert!(matches!(decoded, Err(ManifestError::Form(2))), "{decoded:?}");
    assert!(matches!(Manifest::decode(Digest::of(b"x"), &bytes, MAX_MANIFEST_BYTES), Err(ManifestError::Damaged(_))));
}

#[test]
fn too_many_entries_and_too_many_bytes_of_them_are_refused() {
    let folders = |count: usize, length: usize| {
        let name = |at: usize| format!("{at:06}{}", "\u{1}".repeat(length));
        (0..count).map(|at| entry(&name(at), EntryKind::Directory)).collect::<Vec<_>>()
    };
    assert!(matches!(manifest(folders(MAX_ENTRIES + 1, 0), Vec::new(), Vec::new()), Err(ManifestError::TooLarge)));
    // Six bytes of JSON for every byte of a name: no more is made of it than the bound.
    let many = manifest(folders(120_000, 249), Vec::new(), Vec::new()).unwrap();
    assert!(matches!(many.encode(), Err(ManifestError::TooLarge)));
}
