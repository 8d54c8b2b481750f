//! One connection of a stream: frames until it ends or is cut.

use std::time::Duration;

use reqwest::Response;

use crate::{Error, Parsed, Parser, answer::transport};

/// The longest silence of a stream. The server sends a comment at least every 10 s; after three that did not come the connection
/// counts as cut.
const MAX_SILENCE: Duration = Duration::from_secs(35);

/// A stream's open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    response: Response,
    parser: Parser,
}

impl Connection {
    pub(crate) fn new(response: Response) -> Self {
        Self { response, parser: Parser::default() }
    }

    /// The next frame or comment; `None` where the connection ended. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Parsed>, Error> {
        loop {
            if let Some(parsed) = self.parser.next()? {
                return Ok(Some(parsed));
            }
            match tokio::time::timeout(MAX_SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(piece))) => self.parser.feed(&piece),
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(transport(self.response.url(), &error)),
                Err(_) => {
                    let url = self.response.url().origin().ascii_serialization();
                    return Err(Error::Cut { url, reason: format!("no sign of life for {} s", MAX_SILENCE.as_secs()) });
                }
            }
        }
    }
}
