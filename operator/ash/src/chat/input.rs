//! Lines from standard input, read beside everything else that goes on.

use std::io::{self, BufRead, Read};

use tokio::sync::mpsc;

/// The longest message: 50 MB, which is what a server takes. A longer line is an error.
pub(crate) const MAX_MESSAGE_BYTES: u64 = 50_000_000;

/// Lines that were read and not asked for: 16. Beyond that standard input is not read from.
const MAX_LINES_AHEAD: usize = 16;

/// The lines that come in.
#[derive(Debug)]
pub(crate) struct Input {
    lines: mpsc::Receiver<io::Result<String>>,
}

impl Input {
    /// Reads standard input in a thread of its own, which ends with the process: a read cannot be called off.
    pub(crate) fn start() -> Self {
        let (sender, lines) = mpsc::channel(MAX_LINES_AHEAD);
        std::thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            while let Some(line) = read_line(&mut stdin) {
                let failed = line.is_err();
                if sender.blocking_send(line).is_err() || failed {
                    break;
                }
            }
        });
        Self { lines }
    }

    /// Input that has ended.
    pub(crate) fn nobody() -> Self {
        Self { lines: mpsc::channel(1).1 }
    }

    /// The next line without its end; `None` at the end of the input. Nothing is lost when the future is dropped.
    pub(crate) async fn line(&mut self) -> Option<io::Result<String>> {
        self.lines.recv().await
    }

    /// A line that is there already.
    pub(crate) fn line_ahead(&mut self) -> Option<io::Result<String>> {
        self.lines.try_recv().ok()
    }
}

fn read_line(input: &mut impl BufRead) -> Option<io::Result<String>> {
    let mut bytes = Vec::new();
    match input.take(MAX_MESSAGE_BYTES + 1).read_until(b'\n', &mut bytes) {
        Err(error) => return Some(Err(error)),
        Ok(0) => return None,
        Ok(_) => {}
    }
    if bytes.len() as u64 > MAX_MESSAGE_BYTES {
        let message =
            format!("a line of the input is longer than {MAX_MESSAGE_BYTES} bytes, which is what a server takes");
        return Some(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
    }
    let text = String::from_utf8_lossy(&bytes);
    Some(Ok(text.trim_end_matches(['\n', '\r']).to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::read_line;

    #[test]
    fn lines() {
        let mut input = &b"one\r\n\ntwo\xff"[..];
        let lines: Vec<String> = std::iter::from_fn(|| read_line(&mut input)).map(|line| line.unwrap()).collect();
        assert_eq!(lines, ["one", "", "two\u{fffd}"]);
    }
}
