//! A writer that takes no more than a bound.

use std::io::{self, Write};

/// Passes on what fits, and then nothing more.
pub(super) struct Bounded<W> {
    inner: W,
    left: usize,
    is_full: bool,
}

impl<W: Write> Bounded<W> {
    pub(super) fn new(inner: W, most: usize) -> Self {
        Self { inner, left: most, is_full: false }
    }

    /// Whether something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(super) fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            self.is_full = true;
            return Err(io::Error::other("it is larger than it may be"));
        }
        let count = self.inner.write(bytes)?;
        self.left -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use super::Bounded;

    #[test]
    fn no_more_is_taken_than_fits() {
        let mut bounded = Bounded::new(Vec::new(), 5);
        bounded.write_all(b"123").unwrap();
        assert!(!bounded.is_full());
        assert!(bounded.write_all(b"456").is_err());
        assert!(bounded.is_full());
        assert_eq!(bounded.into_inner(), b"123");
    }
}
