//! Lines that were typed before they were asked for: messages to come.

use std::collections::VecDeque;

/// Lines that are kept: 64. Further ones are left out, and whoever typed them is told.
pub(super) const MAX_LINES_AHEAD: usize = 64;

/// The lines, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Ahead(VecDeque<String>);

impl Ahead {
    /// Keeps a line; false at the bound.
    pub(super) fn keep(&mut self, line: String) -> bool {
        let room = self.0.len() < MAX_LINES_AHEAD;
        if room {
            self.0.push_back(line);
        }
        room
    }

    /// The line that was typed first.
    pub(super) fn next(&mut self) -> Option<String> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::{Ahead, MAX_LINES_AHEAD};

    #[test]
    fn so_many_lines_are_kept_in_order() {
        let mut ahead = Ahead::default();
        let kept = (0..100).filter(|number| ahead.keep(number.to_string())).count();
        assert_eq!(kept, MAX_LINES_AHEAD);
        assert_eq!(ahead.next().as_deref(), Some("0"));
        assert!(ahead.keep("one more".to_owned()));
    }
}
