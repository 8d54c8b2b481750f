//! The ids of a stream's frames, out of bytes that come in any pieces. No I/O.

use memchr::{memchr, memmem};

const MARK: &[u8] = b"\nid: ";

/// Finds ids; holds what may be the beginning of the next one.
#[derive(Debug, Default)]
pub(super) struct Ids {
    carried: Vec<u8>,
}

impl Ids {
    /// Takes the next piece; `each` is told every id that it completes, as entry and frame.
    pub(super) fn feed(&mut self, piece: &[u8], mut each: impl FnMut(u64, u32)) {
        self.carried.extend_from_slice(piece);
        let mut rest = &self.carried[..];
        let kept = loop {
            let Some(at) = memmem::find(rest, MARK) else {
                break rest.len().min(MARK.len() - 1);
            };
            let id = &rest[at + MARK.len()..];
            let Some(end) = memchr(b'\n', id) else { break rest.len() - at };
            if let Some((entry, frame)) = parse(&id[..end]) {
                each(entry, frame);
            }
            // The line's end may begin the next mark.
            rest = &id[end..];
        };
        let from = self.carried.len() - kept;
        self.carried.drain(..from);
    }
}

fn parse(id: &[u8]) -> Option<(u64, u32)> {
    let (entry, frame) = std::str::from_utf8(id).ok()?.split_once('.')?;
    Some((entry.parse().ok()?, frame.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_however_the_bytes_are_cut() {
        let text = b"event: a\ndata: {}\nid: 12.0\n\nevent: b\ndata: \"id: 3\"\nid: 12.1\n\n: keep-alive\n\nevent: c\ndata: 1\nid: 4294967298.0\n\n";
        for size in 1..text.len() {
            let (mut ids, mut found) = (Ids::default(), Vec::new());
            for piece in text.chunks(size) {
                ids.feed(piece, |entry, frame| found.push((entry, frame)));
            }
            assert_eq!(found, [(12, 0), (12, 1), (4_294_967_298, 0)], "pieces of {size}");
            assert!(ids.carried.len() < MARK.len());
        }
    }
}
