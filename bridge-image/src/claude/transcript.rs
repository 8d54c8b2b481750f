//! Reads what Claude Code appends to a conversation's transcript, and puts a transcript back.
//!
//! The file is `projects/<working directory, what is no letter or digit as ->/<conversation>.jsonl` under the configuration
//! folder. Everything that a turn appended is in it when its `result` is printed. Source: Claude Code 2.1.330 as observed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use ash_protocol::message::TranscriptPart;
use bytes::Bytes;
use memchr::{memmem, memrchr};
use uuid::Uuid;

/// The most that one entry of the log carries of a transcript: 1 MiB, and the rest of a line that is longer.
pub const MAX_PART_BYTES: usize = 1 << 20;

/// Claude Code's configuration folder by its environment.
pub fn configuration(environment: &BTreeMap<String, String>) -> PathBuf {
    match environment.get("CLAUDE_CONFIG_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(environment.get("HOME").map_or("/", String::as_str)).join(".claude"),
    }
}

/// The folder of the transcripts of a working directory.
pub fn folder(configuration: &Path, directory: &Path) -> PathBuf {
    let name: String =
        directory.to_string_lossy().chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '-' }).collect();
    configuration.join("projects").join(name)
}

/// The file of a conversation.
pub fn file(folder: &Path, conversation: Uuid) -> PathBuf {
    folder.join(format!("{conversation}.jsonl"))
}

/// Whether there is something in the transcript that a process can resume.
pub fn is_resumable(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let finders = [memmem::Finder::new(br#""type":"assistant""#), memmem::Finder::new(br#""type":"user""#)];
    let overlap = 32;
    let mut window = Vec::with_capacity(256 << 10);
    let mut chunk = vec![0; 128 << 10];
    while let Ok(count @ 1..) = file.read(&mut chunk) {
        window.drain(..window.len().saturating_sub(overlap));
        window.extend_from_slice(&chunk[..count]);
        if finders.iter().any(|finder| finder.find(&window).is_some()) {
            return true;
        }
    }
    false
}

/// The transcript of one conversation, as far as it was shipped.
#[derive(Debug)]
pub struct Transcript {
    conversation: Uuid,
    path: PathBuf,
    offset: u64,
    file: Option<File>,
}

impl Transcript {
    /// A transcript of which the log has everything up to `offset`.
    pub fn new(folder: &Path, conversation: Uuid, offset: u64) -> Self {
        Self { conversation, path: file(folder, conversation), offset, file: None }
    }

    /// Claude Code's own id of the conversation.
    pub fn conversation(&self) -> Uuid {
        self.conversation
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next complete lines that were appended, as the body of an entry; `None` when there are none.
    ///
    /// A file that is shorter than what was shipped was written anew: it is shipped from its beginning.
    pub fn next_part(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = self.open()? else { return Ok(None) };
        let length = file.metadata()?.len();
        if length < self.offset {
            self.offset = 0;
        }
        let head = serde_json::to_vec(&TranscriptPart { conversation: self.conversation, offset: self.offset })?;
        let mut want = MAX_PART_BYTES;
        loop {
            let left = usize::try_from(length - self.offset).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(None);
            }
            let mut body = Vec::with_capacity(head.len() + 1 + want.min(left));
            body.extend_from_slice(&head);
            body.push(b'\n');
            let start = body.len();
            body.resize(start + want.min(left), 0);
            let offset = self.offset;
            let read = read_at(self.open()?.ok_or(io::ErrorKind::NotFound)?, &mut body[start..], offset)?;
            body.truncate(start + read);
            match memrchr(b'\n', &body[start..]) {
                Some(end) => {
                    body.truncate(start + end + 1);
                    self.offset += end as u64 + 1;
                    return Ok(Some(body.into()));
                }
                // Half a line; the rest comes later.
                None if read < want => return Ok(None),
                None => want = want.saturating_mul(2),
            }
        }
    }

    /// The file that the path names now: Claude Code may have replaced it.
    fn open(&mut self) -> io::Result<Option<&File>> {
        let named = match std::fs::metadata(&self.path) {
            Ok(named) => named,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_same = match &self.file {
            Some(file) => {
                file.metadata().is_ok_and(|opened| opened.ino() == named.ino() && opened.dev() == named.dev())
            }
            None => false,
        };
        if !is_same {
            self.file = Some(File::open(&self.path)?);
        }
        Ok(self.file.as_ref())
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, io::Write, path::Path};

    use ash_protocol::message::TranscriptPart;
    use uuid::Uuid;

    use super::{MAX_PART_BYTES, Transcript, folder, is_resumable};

    fn parts(transcript: &mut Transcript) -> Vec<(u64, Vec<u8>)> {
        let mut parts = Vec::new();
        while let Some(body) = transcript.next_part().unwrap() {
            let (head, bytes) = TranscriptPart::split(&body).unwrap();
            parts.push((head.offset, bytes.to_vec()));
        }
        parts
    }

    #[test]
    fn the_folder_is_named_as_claude_names_it() {
        let folder = folder(Path::new("/home/a/.claude"), Path::new("/tmp/.x_y/workspace"));
        assert_eq!(folder, Path::new("/home/a/.claude/projects/-tmp--x-y-workspace"));
    }

    #[test]
    fn whole_lines_are_shipped_once_and_in_order() {
        let home = tempfile::tempdir().unwrap();
        let mut transcript = Transcript::new(home.path(), Uuid::nil(), 0);
        assert!(parts(&mut transcript).is_empty());
        fs::write(transcript.path(), "one\ntw").unwrap();
        assert_eq!(parts(&mut transcript), [(0, b"one\n".to_vec())]);
        let mut file = fs::OpenOptions::new().append(true).open(transcript.path()).unwrap();
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(parts(&mut transcript), [(4, b"two\nthree\n".to_vec())]);
        fs::write(transcript.path(), "new\n").unwrap();
        assert_eq!(parts(&mut transcript), [(0, b"new\n".to_vec())]);
    }

    #[test]
    fn long_transcripts_come_in_parts_and_long_lines_whole() {
        let home = tempfile::tempdir().unwrap();
        let mut transcript = Transcript::new(home.path(), Uuid::nil(), 0);
        let mut content = vec![b'x'; 3 * MAX_PART_BYTES];
        content.push(b'\n');
        content.extend((0..MAX_PART_BYTES).flat_map(|_| *b"y\n"));
        fs::write(transcript.path(), &content).unwrap();
        let parts = parts(&mut transcript);
        assert!(parts.len() >= 3, "{}", parts.len());
        assert_eq!(parts.concat_bytes(), content);
    }

    trait Concat {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl Concat for Vec<(u64, Vec<u8>)> {
        fn concat_bytes(&self) -> Vec<u8> {
            let mut all = Vec::new();
            for (offset, bytes) in self {
                assert_eq!(*offset, all.len() as u64);
                all.extend_from_slice(bytes);
            }
            all
        }
    }

    #[test]
    fn only_a_transcript_with_messages_can_be_resumed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.jsonl");
        assert!(!is_resumable(&path));
        fs::write(&path, "{\"type\":\"queue-operation\"}\n").unwrap();
        assert!(!is_resumable(&path));
        fs::write(&path, "x".repeat(200_000) + "{\"type\":\"user\"}\n").unwrap();
        assert!(is_resumable(&path));
    }
}
