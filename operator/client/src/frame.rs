//! One frame of a stream, as it came.

use crate::{Error, Event};

/// One frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type: `text_delta`, `done`, ...
    pub event: String,
    /// Its data, one line of JSON.
    pub data: String,
    /// Its position (`<sequence>.<k>`); `session_start` has none.
    pub id: Option<String>,
}

impl Frame {
    /// What the frame says. A type that this release does not know gives [`Event::Other`].
    pub fn read(&self) -> Result<Event, Error> {
        Event::read(&self.event, &self.data)
    }
}
