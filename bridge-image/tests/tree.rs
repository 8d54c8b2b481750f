//! A workspace that is listed, read and made again elsewhere, over the real protocol: byte for byte and mode for mode.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod support;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::Path,
};

use ash_protocol::{
    message::{RefusalCategory, Request, TreeListed, TreeRead, TreeRestored},
    tree::{Entry, EntryKind, Extent, ListedFile, NoteKind},
};
use proptest::{prelude::*, test_runner::TestRunner};
use support::{Connection, Sandbox, stand_in};

const LIMIT: u64 = 100_000;

async fn start() -> (Sandbox, Connection) {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let connection = sandbox.connect().await;
    (sandbox, connection)
}

async fn list(sandbox: &mut Sandbox, connection: &mut Connection) -> (Vec<Entry>, TreeListed) {
    let request = connection.request(Request::ListTree { limit: LIMIT }).await;
    connection.grant(request, 1 << 30).await;
    let listed: TreeListed = connection.answer(sandbox, request).await.unwrap();
    let lines = connection.data.remove(&request).unwrap_or_default();
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut entries: Vec<Entry> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(entries.len() as u64, listed.entries);
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    (entries, listed)
}

fn asked(entry: &Entry) -> Option<ListedFile> {
    match entry.kind {
        EntryKind::File { size, stamp, .. } => Some(ListedFile { path: entry.path.clone(), size, stamp }),
        _ => None,
    }
}

/// The stream that makes a listed workspace again. Files are read in several requests.
async fn stream(sandbox: &mut Sandbox, connection: &mut Connection, entries: &[Entry]) -> Vec<u8> {
    let files: Vec<ListedFile> = entries.iter().filter_map(asked).collect();
    let mut bytes = Vec::new();
    for some in files.chunks(7) {
        let request = connection.request(Request::ReadTree { files: some.to_vec() }).await;
        connection.grant(request, 1 << 30).await;
        let read: TreeRead = connection.answer(sandbox, request).await.unwrap();
        assert_eq!(read.outcomes, []);
        bytes.extend(connection.data.remove(&request).unwrap_or_default());
    }
    let (mut made, mut at) = (Vec::new(), 0);
    for entry in entries {
        serde_json::to_writer(&mut made, entry).unwrap();
        made.push(b'\n');
        if let EntryKind::File { size, sparse, .. } = entry.kind {
            if sparse && size > 0 {
                serde_json::to_writer(&mut made, &Extent::Data(size)).unwrap();
                made.push(b'\n');
            }
            let size = usize::try_from(size).unwrap();
            made.extend_from_slice(&bytes[at..at + size]);
            at += size;
        }
    }
    assert_eq!(at, bytes.len());
    made
}

async fn restore(sandbox: &mut Sandbox, connection: &mut Connection, stream: &[u8]) -> TreeRestored {
    let request = connection.request(Request::RestoreTree {}).await;
    connection.send_data(request, stream).await;
    connection.answer(sandbox, request).await.unwrap()
}

/// What can be seen of a tree, by path: kind, mode, time, bytes or target, and with whom its inode is shared.
fn seen(root: &Path) -> BTreeMap<Vec<u8>, (u32, i64, i64, Vec<u8>)> {
    fn look(
        root: &Path,
        folder: &Path,
        first: &mut BTreeMap<u64, Vec<u8>>,
        all: &mut BTreeMap<Vec<u8>, (u32, i64, i64, Vec<u8>)>,
    ) {
        let mut items: Vec<_> = fs::read_dir(folder).unwrap().map(|item| item.unwrap().path()).collect();
        items.sort();
        for path in items {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            let content = if metadata.is_dir() {
                look(root, &path, first, all);
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if metadata.nlink() > 1 && first.contains_key(&metadata.ino()) {
                first[&metadata.ino()].clone()
            } else {
                first.insert(metadata.ino(), name.clone());
                fs::read(&path).unwrap()
            };
            all.insert(name, (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content));
        }
    }
    let mut all = BTreeMap::new();
    look(root, root, &mut BTreeMap::new(), &mut all);
    all
}

/// One thing to make.
#[derive(Debug, Clone)]
enum Thing {
    File { bytes: Vec<u8>, mode: u32 },
    Sparse { at: u64, size: u64 },
    Folder { mode: u32 },
    Link { target: Vec<u8> },
    Same { of: prop::sample::Index },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,2}".prop_map(String::into_bytes),
        1 => prop::collection::vec(1u8..=255, 1..20),
        1 => Just(b"a-b".to_vec()),
        1 => Just("\u{1F600} \n\"".as_bytes().to_vec()),
        1 => Just(vec![0xff; 255]),
    ]
    .prop_filter("no name", |name| !name.contains(&b'/') && name != b"." && name != b".." && name != b".ashignore")
}

fn thing() -> impl Strategy<Value = Thing> {
    let bytes = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), 60_000usize..300_000).prop_map(|(byte, size)| vec![byte; size]),
    ];
    prop_oneof![
        4 => (bytes, 0u32..0o10000).prop_map(|(bytes, mode)| Thing::File { bytes, mode: mode | 0o400 }),
        1 => (0u64..200_000, 200_000u64..900_000).prop_map(|(at, size)| Thing::Sparse { at, size }),
        2 => (0u32..0o10000).prop_map(|mode| Thing::Folder { mode: mode | 0o500 }),
        1 => prop::collection::vec(1u8..=255, 1..30).prop_map(|target| Thing::Link { target }),
        1 => any::<prop::sample::Index>().prop_map(|of| Thing::Same { of }),
    ]
}

/// Makes a tree. What is in the way of what was made before is not made.
fn make(root: &Path, things: &[(Vec<Vec<u8>>, Thing)]) {
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    let mut folders = Vec::new();
    for (names, thing) in things {
        let path = names.iter().fold(root.to_owned(), |path, name| path.join(OsStr::from_bytes(name)));
        let parent = path.parent().unwrap();
        if fs::symlink_metadata(&path).is_ok() || !in_folders(root, parent) {
            continue;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).unwrap();
        match thing {
            Thing::File { bytes, mode } => {
                fs::write(&path, bytes).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                files.push(path);
            }
            Thing::Sparse { at, size } => {
                let file = fs::File::create(&path).unwrap();
                file.set_len(*size).unwrap();
                file.write_all_at(b"in the middle", *at).unwrap();
                files.push(path);
            }
            Thing::Folder { mode } => {
                fs::create_dir(&path).unwrap();
                folders.push((path, *mode));
            }
            Thing::Link { target } => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Thing::Same { of } if !files.is_empty() => fs::hard_link(of.get(&files), &path).unwrap(),
            Thing::Same { .. } => {}
        }
    }
    for (path, mode) in folders.iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
    }
}

/// Whether a path leads through folders only, as far as it is there.
fn in_folders(root: &Path, path: &Path) -> bool {
    path.ancestors()
        .take_while(|ancestor| *ancestor != root)
        .all(|ancestor| fs::symlink_metadata(ancestor).is_err() || fs::symlink_metadata(ancestor).unwrap().is_dir())
}

#[test]
fn random_trees_come_back_byte_for_byte_and_mode_for_mode() {
    let tree = prop::collection::vec((prop::collection::vec(name(), 1..4), thing()), 0..40);
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // One pair of bridges for all: each restores over what was there before.
    let pair = runtime.block_on(async { (start().await, start().await) });
    let pair = std::cell::Cell::new(Some(pair));
    TestRunner::new(config)
        .run(&tree, |things| {
            runtime.block_on(async {
                let ((mut one, mut to_one), (mut other, mut to_other)) = pair.take().unwrap();
                // The bridge holds the folder: it is emptied, not replaced.
                restore(&mut one, &mut to_one, b"").await;
                assert_eq!(seen(&one.workspace()), BTreeMap::new());
                make(&one.workspace(), &things);
                let (entries, listed) = list(&mut one, &mut to_one).await;
                assert_eq!((listed.ignored, listed.notes.notes.len()), (0, 0));
                let stream = stream(&mut one, &mut to_one, &entries).await;
                let restored = restore(&mut other, &mut to_other, &stream).await;
                assert_eq!(restored.entries, listed.entries);
                assert_eq!(seen(&other.workspace()), seen(&one.workspace()));
                pair.set(Some(((one, to_one), (other, to_other))));
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn holes_stay_holes() {
    let (mut one, mut to_one) = start().await;
    let file = fs::File::create(one.workspace().join("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"x", 40 << 20).unwrap();
    drop(file);
    let (entries, _) = list(&mut one, &mut to_one).await;
    assert!(matches!(entries[0].kind, EntryKind::File { sparse: true, .. }), "{entries:?}");
    let stream = stream(&mut one, &mut to_one, &entries).await;
    let (mut other, mut to_other) = start().await;
    restore(&mut other, &mut to_other, &stream).await;
    let made = fs::metadata(other.workspace().join("sparse")).unwrap();
    assert_eq!(made.len(), 64 << 20);
    assert!(made.blocks() * 512 < 1 << 20, "{} blocks", made.blocks());
    assert_eq!(seen(&other.workspace()), seen(&one.workspace()));
}

#[tokio::test]
async fn a_file_of_terabytes_of_holes_is_read_and_made_in_no_time() {
    const SIZE: u64 = 4 << 40;
    let (mut one, mut to_one) = start().await;
    let file = fs::File::create(one.workspace().join("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"x", 3 << 40).unwrap();
    let (entries, _) = list(&mut one, &mut to_one).await;
    let files = entries.iter().filter_map(asked).collect();
    let request = to_one.request(Request::ReadTree { files }).await;
    to_one.holes = Some(Vec::new());
    let read: TreeRead = to_one.answer(&mut one, request).await.unwrap();
    assert_eq!(read.outcomes, []);
    let holes = to_one.holes.take().unwrap();
    let data = to_one.data.remove(&request).unwrap();
    assert_eq!((holes.len(), holes.iter().sum::<u64>()), (2, SIZE - data.len() as u64));
    let mut made = serde_json::to_vec(&entries[0]).unwrap();
    made.push(b'\n');
    for extent in [Extent::Hole(holes[0]), Extent::Data(data.len() as u64), Extent::Hole(holes[1])] {
        serde_json::to_writer(&mut made, &extent).unwrap();
        made.push(b'\n');
        if matches!(extent, Extent::Data(_)) {
            made.extend_from_slice(&data);
        }
    }
    let (mut other, mut to_other) = start().await;
    assert_eq!(restore(&mut other, &mut to_other, &made).await.bytes, SIZE);
    let made = fs::File::open(other.workspace().join("sparse")).unwrap();
    let mut byte = [0];
    made.read_exact_at(&mut byte, 3 << 40).unwrap();
    assert_eq!((byte[0], made.metadata().unwrap().len()), (b'x', SIZE));
    assert!(made.metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[tokio::test]
async fn a_workspace_is_made_again_over_folders_that_nobody_may_write_to() {
    let (mut sandbox, mut connection) = start().await;
    let deep = sandbox.workspace().join("a/b");
    fs::create_dir_all(deep.join("c/d")).unwrap();
    fs::write(deep.join("c/file"), "x").unwrap();
    for folder in [deep.join("c"), deep.clone()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
    }
    fs::set_permissions(deep.join("c/d"), fs::Permissions::from_mode(0o000)).unwrap();
    restore(&mut sandbox, &mut connection, b"").await;
    assert_eq!(seen(&sandbox.workspace()), BTreeMap::new());
}

#[tokio::test]
async fn what_a_program_makes_meanwhile_is_in_no_ones_way() {
    let (mut sandbox, mut connection) = start().await;
    let workspace = sandbox.workspace();
    let lines = |line: &str| format!("{line}\n");
    let stamp = r#"{"inode":1,"changedNs":1}"#;
    let folder = |path: &str| lines(&format!(r#"{{"path":"{path}","mode":448,"modifiedNs":0,"kind":"directory"}}"#));
    let file = format!(r#"{{"path":"made/log","mode":420,"modifiedNs":0,"kind":"file","size":4,"stamp":{stamp}}}"#);
    let link = lines(r#"{"path":"made/link","mode":511,"modifiedNs":0,"kind":"symlink","target":"log"}"#);
    let request = connection.request(Request::RestoreTree {}).await;
    connection.send_some(request, folder("made").as_bytes()).await;
    eventually_there(&workspace.join("made")).await;
    // A program of the sandbox is quicker.
    fs::write(workspace.join("made/log"), "in the way").unwrap();
    fs::create_dir_all(workspace.join("made/link/deep/er")).unwrap();
    fs::write(workspace.join("made/folder"), "in the way").unwrap();
    let rest = format!("{}snap{link}{}", lines(&file), folder("made/folder"));
    connection.send_data(request, rest.as_bytes()).await;
    let restored: TreeRestored = connection.answer(&mut sandbox, request).await.unwrap();
    assert_eq!(restored.entries, 4);
    assert_eq!(fs::read(workspace.join("made/log")).unwrap(), b"snap");
    assert_eq!(fs::read_link(workspace.join("made/link")).unwrap(), Path::new("log"));
    assert!(workspace.join("made/folder").is_dir());
}

async fn eventually_there(path: &Path) {
    let there = async {
        while !path.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::DEADLINE, there).await.unwrap();
}

#[tokio::test]
async fn what_is_left_out_is_noted_or_ignored() {
    let (mut sandbox, mut connection) = start().await;
    let workspace = sandbox.workspace();
    fs::write(workspace.join(".ashignore"), "*.log\n/build/\n!keep.log\n").unwrap();
    for file in ["a.log", "keep.log", "build/out", "src/build/in", "src/__pycache__/x.pyc", "src/main"] {
        fs::create_dir_all(workspace.join(file).parent().unwrap()).unwrap();
        fs::write(workspace.join(file), file).unwrap();
    }
    let _listener = std::os::unix::net::UnixListener::bind(workspace.join("socket")).unwrap();
    let (entries, listed) = list(&mut sandbox, &mut connection).await;
    let paths: Vec<String> = entries.iter().map(|entry| entry.path.to_string()).collect();
    assert_eq!(paths, [".ashignore", "keep.log", "src", "src/build", "src/build/in", "src/main"]);
    assert_eq!(listed.ignored, 3);
    let notes: Vec<_> = listed.notes.notes.iter().map(|note| (note.path.to_string(), note.note)).collect();
    assert_eq!(notes, [("socket".to_owned(), NoteKind::Special)]);
    let refused = connection.ask::<TreeListed>(&mut sandbox, Request::ListTree { limit: 3 }).await.unwrap_err();
    assert_eq!(refused.0, RefusalCategory::Invalid);
}

#[tokio::test]
async fn files_that_changed_or_went_are_said() {
    let (mut sandbox, mut connection) = start().await;
    let workspace = sandbox.workspace();
    for file in ["changed", "gone", "longer", "same", "shorter", "swapped"] {
        fs::write(workspace.join(file), file).unwrap();
    }
    let (entries, _) = list(&mut sandbox, &mut connection).await;
    fs::write(workspace.join("changed"), "CHANGED").unwrap();
    fs::remove_file(workspace.join("gone")).unwrap();
    fs::write(workspace.join("longer"), "longer than it was").unwrap();
    fs::write(workspace.join("shorter"), "no").unwrap();
    fs::write(sandbox.folder.path().join("secret"), "secret!").unwrap();
    fs::remove_file(workspace.join("swapped")).unwrap();
    symlink("../secret", workspace.join("swapped")).unwrap();
    let files = entries.iter().filter_map(asked).collect();
    let request = connection.request(Request::ReadTree { files }).await;
    let read: TreeRead = connection.answer(&mut sandbox, request).await.unwrap();
    let changed = NoteKind::Changed;
    assert_eq!(read.outcomes, [(0, changed), (1, NoteKind::Gone), (2, changed), (4, changed), (5, NoteKind::Gone)]);
    // No more of a file than was listed, and nothing of what is outside.
    assert_eq!(connection.data[&request], b"CHANGEDlongersameno");
}

#[tokio::test]
async fn nothing_is_made_outside_of_the_workspace() {
    let (mut sandbox, mut connection) = start().await;
    let link = r#"{"path":"out","mode":511,"modifiedNs":0,"kind":"symlink","target":".."}"#;
    let absolute = r#"{"path":"out","mode":511,"modifiedNs":0,"kind":"symlink","target":"/tmp"}"#;
    let file = |path: &str| {
        let stamp = r#"{"inode":1,"changedNs":1}"#;
        format!(r#"{{"path":"{path}","mode":420,"modifiedNs":0,"kind":"file","size":2,"stamp":{stamp}}}"#)
    };
    let folder = r#"{"path":"out/folder","mode":448,"modifiedNs":0,"kind":"directory"}"#;
    let hard = r#"{"path":"hard","mode":420,"modifiedNs":0,"kind":"hardLink","to":"out/secret"}"#;
    fs::write(sandbox.folder.path().join("secret"), "secret").unwrap();
    for stream in [
        format!("{link}\n{}\nno", file("out/escaped")),
        format!("{absolute}\n{}\nno", file("out/ash-escaped")),
        format!("{link}\n{folder}\n"),
        format!("{link}\n{hard}\n"),
        format!("{}\nno", file("../escaped")),
        format!("{}\nno", file("/tmp/ash-escaped")),
        format!("{}\nno", file("a/../../escaped")),
        format!("{}\nn", file("cut")),
        "no json\n".to_owned(),
        r#"{"path":"#.to_owned(),
    ] {
        let request = connection.request(Request::RestoreTree {}).await;
        connection.send_data(request, stream.as_bytes()).await;
        let refused = connection.answer::<TreeRestored>(&mut sandbox, request).await.unwrap_err();
        assert!(matches!(refused.0, RefusalCategory::Invalid | RefusalCategory::NotFound), "{stream}: {refused:?}");
    }
    let outside: Vec<_> = fs::read_dir(sandbox.folder.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert!(!outside.iter().any(|name| name == "escaped" || name == "folder"), "{outside:?}");
    assert!(!Path::new("/tmp/ash-escaped").exists());
    assert_eq!(fs::read(sandbox.folder.path().join("secret")).unwrap(), b"secret");
}

#[tokio::test]
async fn a_request_is_given_up_and_its_place_is_free_again() {
    let (mut sandbox, mut connection) = start().await;
    fs::write(sandbox.workspace().join("large"), vec![1; 4 << 20]).unwrap();
    let (entries, _) = list(&mut sandbox, &mut connection).await;
    let files: Vec<ListedFile> = entries.iter().filter_map(asked).collect();
    // More than there may be at once, each of which waits for credit.
    for _ in 0..40 {
        let request = connection.request(Request::ReadTree { files: files.clone() }).await;
        connection
            .until(&mut sandbox, |_, connection| {
                connection.data.get(&request).is_some_and(|data| data.len() == 1 << 20)
            })
            .await;
        let _: () = connection.ask(&mut sandbox, Request::Cancel { request }).await.unwrap();
        let given_up = connection.answer::<TreeRead>(&mut sandbox, request).await.unwrap_err();
        assert_eq!(given_up.0, RefusalCategory::NotReady);
    }
    let _: () = connection.ask(&mut sandbox, Request::Cancel { request: 12_345 }).await.unwrap();
}

#[tokio::test]
async fn a_turn_goes_on_while_the_workspace_is_read() {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let mut connection = sandbox.session(ash_protocol::options::SessionOptions::default()).await;
    fs::write(sandbox.workspace().join("large"), vec![1; 32 << 20]).unwrap();
    let (entries, _) = list(&mut sandbox, &mut connection).await;
    let files = entries.iter().filter_map(asked).collect();
    let request = connection.request(Request::ReadTree { files }).await;
    // The host takes no more of it for now.
    connection
        .until(&mut sandbox, |_, connection| connection.data.get(&request).is_some_and(|data| data.len() == 1 << 20))
        .await;
    connection.turn(&mut sandbox, 1, "hello").await;
    assert_eq!(connection.data[&request].len(), 1 << 20);
    connection.grant(request, 64 << 20).await;
    connection.turn(&mut sandbox, 2, "hello again").await;
    let read: TreeRead = connection.answer(&mut sandbox, request).await.unwrap();
    assert_eq!((read.outcomes, connection.data[&request].len()), (Vec::new(), 32 << 20));
}
