//! The model key never enters a sandbox: it is in no environment, argument, file or memory of any process there, while the model
//! was called with it.

#![allow(clippy::print_stdout, reason = "what was searched is said, and what could not be")]

mod hostile;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use ash_e2e::{
    harness::{MODEL_KEY, TestApp},
    model::RequestKind,
};
use hostile::{bash, modes, print_protections, processes, session_with};
use memchr::memmem;

/// Bytes that are read at once.
const PIECE: usize = 4 << 20;
/// Bits of an entry of `/proc/<pid>/pagemap`: in memory, swapped out.
const THERE: u64 = 0b11 << 62;

/// Finds a word in everything that a process may read of its own memory and that is there; with the bytes searched.
fn find_in_memory(pid: u32, words: &[&str]) -> std::io::Result<(Vec<bool>, u64)> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let (mut found, mut searched, page) = (vec![false; words.len()], 0, page_bytes());
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        // What the kernel maps for itself into every process cannot be read this way.
        if !rights.starts_with('r') || line.ends_with("[vsyscall]") || line.contains("[vvar") {
            continue;
        }
        for (start, end) in present(&pages, page, address(start), address(end)) {
            searched += search(&memory, start, end, words, &mut found);
        }
    }
    Ok((found, searched))
}

/// The unit, in bytes, in which the kernel says what is in memory.
fn page_bytes() -> u64 {
    let own = fs::read_to_string("/proc/self/smaps").expect("maps");
    let line = own.lines().find_map(|line| line.strip_prefix("KernelPageSize:")).expect("a page size");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

/// The parts of a range that are in memory. Reservations of address space are far larger than what is used of them.
fn present(pages: &File, page: u64, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    let mut at = start;
    let mut entries = vec![0; PIECE];
    while at < end {
        let wanted = usize::try_from((end - at) / page * 8).map_or(PIECE, |bytes| bytes.min(PIECE));
        let Ok(count @ 8..) = pages.read_at(&mut entries[..wanted], at / page * 8) else { break };
        for entry in entries[..count].chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
            if entry & THERE != 0 {
                match parts.last_mut() {
                    Some(last) if last.1 == at => last.1 = at + page,
                    _ => parts.push((at, at + page)),
                }
            }
            at += page;
        }
    }
    parts
}

fn search(memory: &File, start: u64, end: u64, words: &[&str], found: &mut [bool]) -> u64 {
    let overlap = words.iter().map(|word| word.len()).max().unwrap_or(0) as u64;
    let (mut at, mut searched) = (start, 0);
    let mut piece = vec![0; PIECE];
    while at < end {
        let wanted = usize::try_from(end - at).map_or(PIECE, |bytes| bytes.min(PIECE));
        let Ok(count @ 1..) = memory.read_at(&mut piece[..wanted], at) else { break };
        for (word, found) in words.iter().zip(found.iter_mut()) {
            *found = *found || memmem::find(&piece[..count], word.as_bytes()).is_some();
        }
        searched += count as u64;
        let next = at + count as u64;
        // A word may lie across two pieces.
        at = if next < end { next - overlap.min(count as u64 - 1) } else { next };
    }
    searched
}

/// Finds words in the files of a folder, following no links.
fn find_in_files(folder: &Path, words: &[&str], found: &mut [bool]) -> u64 {
    let mut files = 0;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            files += find_in_files(&entry.path(), words, found);
        } else if kind.is_file()
            && let Ok(text) = fs::read(entry.path())
        {
            files += 1;
            for (word, found) in words.iter().zip(found.iter_mut()) {
                *found = *found || memmem::find(&text, word.as_bytes()).is_some();
            }
        }
    }
    files
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_key_is_nowhere_in_a_sandbox() {
    let app = TestApp::start().await;
    print_protections(&app);
    let mut tokens = Vec::new();
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        let leave = "echo word-of-the-workspace >word; echo word-of-tmp >/tmp/word; echo word-of-home >~/word; \
            setsid sleep 600.5 >/dev/null 2>&1 </dev/null & echo $ANTHROPIC_API_KEY";
        tokens.push((session.id.clone(), bash(&app, &session, leave).await));
        let turn = app.say(&session, "[[text: and once more]]").await;
        assert_eq!(turn.error(), None);
    }
    app.wait_warm(3).await;

    let asked = app.model.all_requests();
    let turns: Vec<_> = asked.iter().filter(|request| request.kind == RequestKind::Turn).collect();
    assert!(
        turns.len() >= 6 && turns.iter().all(|request| request.api_key() == Some(MODEL_KEY)),
        "the model saw the key"
    );

    let folders: Vec<PathBuf> =
        fs::read_dir(app.data().join("sandboxes")).expect("sandboxes").flatten().map(|entry| entry.path()).collect();
    assert!(folders.len() >= 6, "three sessions and three warm sandboxes: {folders:?}");
    for folder in &folders {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let token = tokens.iter().find(|(session, _)| *session == name).map(|(_, token)| token.as_str());
        search_files(folder, token.is_some());
        search_processes(folder, token);
    }
}

/// Everything under a sandbox's folder, and what is only in its own mounts.
fn search_files(folder: &Path, of_a_session: bool) {
    let mut found = [false; 4];
    let words = [MODEL_KEY, "word-of-the-workspace", "word-of-home", "word-of-tmp"];
    let mut files = find_in_files(folder, &words, &mut found);
    if is_root() {
        let pid = *processes(folder).first().expect("a sandbox that runs");
        for inner in ["tmp", "dev/shm", "run", "home"] {
            files += find_in_files(&PathBuf::from(format!("/proc/{pid}/root/{inner}")), &words, &mut found);
        }
        assert_eq!(found[3], of_a_session, "the search finds what is in /tmp");
    } else {
        println!("SKIPPED without root: the files in the sandbox's own /tmp");
    }
    println!("{}: searched {files} files", folder.display());
    assert!(!found[0], "the model key is in a file of {}", folder.display());
    assert_eq!(found[1..3], [of_a_session; 2], "the search finds what is there");
}

/// Environment, arguments and memory of every process, and of bubblewrap outside.
fn search_processes(folder: &Path, token: Option<&str>) {
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("sandbox.json")).expect("a record")).expect("JSON");
    let monitor = u32::try_from(record["monitor"]["pid"].as_u64().expect("a monitor")).expect("a process id");
    let mut pids = processes(folder);
    assert!(pids.len() >= 3, "bubblewrap, the bridge and Claude Code: {pids:?}");
    pids.push(monitor);
    let words = [MODEL_KEY, token.unwrap_or("ANTHROPIC_BASE_URL")];
    let (mut searched, mut control_environment, mut control_memory) = (0, false, false);
    for pid in pids {
        for file in ["environ", "cmdline"] {
            match fs::read(format!("/proc/{pid}/{file}")) {
                Ok(bytes) => {
                    assert!(
                        memmem::find(&bytes, MODEL_KEY.as_bytes()).is_none(),
                        "the model key is in {file} of {pid}"
                    );
                    control_environment |= memmem::find(&bytes, words[1].as_bytes()).is_some();
                }
                Err(error) => assert!(!is_root(), "{file} of {pid} cannot be read: {error}"),
            }
        }
        match find_in_memory(pid, &words) {
            Ok((found, bytes)) => {
                assert!(!found[0], "the model key is in the memory of {pid}");
                control_memory |= found[1];
                searched += bytes;
            }
            Err(error) => assert!(!is_root(), "the memory of {pid} cannot be read: {error}"),
        }
    }
    if is_root() {
        assert!(control_environment && control_memory, "the search finds the sandbox's own token");
        println!("{}: searched {} MiB of memory", folder.display(), searched >> 20);
    } else {
        println!("SKIPPED without root: the memory of processes of another user namespace");
    }
}
