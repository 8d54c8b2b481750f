//! The file that takes what the program writes to its standard output and error.
//!
//! It is a file and not a pipe, so that the program can go on writing while no server lives. Nobody stands between the
//! program and the file, so its bound is kept by cutting it back whenever it is looked at ([`trim`]); what is written
//! between two looks counts against the disk quota like everything else in the sandbox's directory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Name of the file in the sandbox's directory.
pub(crate) const NAME: &str = "program.log";
/// Size over which the file is cut back to its last [`KEPT_BYTES`].
pub(crate) const LARGEST_BYTES: u64 = 1024 * 1024;
/// How much of the end is read for [`tail`], and kept by [`trim`].
pub(crate) const KEPT_BYTES: u64 = 64 * 1024;

/// The last `lines` lines, of at most the last [`KEPT_BYTES`]; empty when there is no file.
pub(crate) fn tail(directory: &Path, lines: usize) -> io::Result<Vec<String>> {
    let Some(mut file) = open(directory)? else { return Ok(Vec::new()) };
    let end = last_bytes(&mut file)?;
    let text = String::from_utf8_lossy(&end);
    let all: Vec<&str> = text.lines().collect();
    let first = all.len().saturating_sub(lines);
    Ok(all.into_iter().skip(first).map(str::to_owned).collect())
}

/// Cuts the file back when it is over its bound. The program appends, so it goes on at the new end; a line that it
/// writes at this very moment may be lost. True where it was over its bound.
pub(crate) fn trim(directory: &Path) -> io::Result<bool> {
    let Some(mut file) = open(directory)? else { return Ok(false) };
    if file.metadata()?.len() <= LARGEST_BYTES {
        return Ok(false);
    }
    let end = last_bytes(&mut file)?;
    file.set_len(0)?;
    file.write_all(&end)?;
    Ok(true)
}

fn open(directory: &Path) -> io::Result<Option<File>> {
    match File::options().read(true).append(true).open(directory.join(NAME)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn last_bytes(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(KEPT_BYTES)))?;
    let mut end = Vec::new();
    Read::by_ref(file).take(KEPT_BYTES).read_to_end(&mut end)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        assert!(tail(directory.path(), 3).unwrap().is_empty());
        std::fs::write(directory.path().join(NAME), "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(directory.path(), 2).unwrap(), ["two", "three"]);
        assert_eq!(tail(directory.path(), 9).unwrap().len(), 3);
    }

    #[test]
    fn a_file_over_the_bound_keeps_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let mut text = "x".repeat(usize::try_from(LARGEST_BYTES).unwrap());
        text.push_str("\nthe end\n");
        std::fs::write(&path, text).unwrap();
        assert!(trim(directory.path()).unwrap());
        assert!(!trim(directory.path()).unwrap(), "it is within its bound");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), KEPT_BYTES);
        assert_eq!(tail(directory.path(), 1).unwrap(), ["the end"]);
    }
}
