//! A stream that survives its connections.

use std::time::Duration;

use ash_core::sse::Position;
use bytes::Bytes;
use futures::Stream;
use uuid::Uuid;

use crate::{
    Client, Error, Frame, Parsed,
    connection::Connection,
    cursor::{Cursor, Verdict},
};

/// How to read a session's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// Go on after the turn in progress, until the reader goes away.
    pub follow: bool,
    /// Have the text as it is written, too.
    pub include_partial_messages: bool,
}

/// Where a stream comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// The answer to a message. Until the first frame with a position, a cut connection is mended by sending the message again
    /// with the same `Idempotency-Key`, which joins its turn.
    Message {
        /// The message, as it is sent.
        body: Bytes,
        /// The key.
        key: String,
    },
    /// The session's own stream.
    Session,
}

/// A stream of frames. Where the connection is cut it reconnects (see [`Reconnect`](crate::Reconnect)), so that every frame is
/// seen once and in order. It ends after `done`, or with an error; with `follow` it ends only with an error.
///
/// A stream *from now on* that is cut before its first frame begins anew at the time when it is connected again.
#[derive(Debug)]
pub struct FrameStream {
    client: Client,
    session: String,
    source: Source,
    options: StreamOptions,
    cursor: Cursor,
    connection: Option<Connection>,
    /// Attempts since the last sign of life.
    attempts: u32,
    /// The wait before the next attempt.
    wait: Option<Duration>,
    reconnects: u64,
    ended: bool,
}

impl FrameStream {
    /// Opens a stream. The first connection is not tried again where nobody answers or the server refuses.
    pub(crate) async fn open(
        client: Client,
        session: String,
        source: Source,
        options: StreamOptions,
        after: Option<Position>,
    ) -> Result<Self, Error> {
        let mut stream = Self {
            client,
            session,
            source,
            options,
            cursor: Cursor::after(after),
            connection: None,
            attempts: 0,
            wait: None,
            reconnects: 0,
            ended: false,
        };
        match stream.connect().await {
            Ok(connection) => stream.connection = Some(connection),
            Err(error @ Error::Cut { .. }) => stream.failed(error)?,
            Err(error) => return Err(error),
        }
        Ok(stream)
    }

    /// The position of the last frame, to go on from with [`Client::stream`]; `None` before the first.
    pub fn position(&self) -> Option<String> {
        self.cursor.position().map(|position| position.to_string())
    }

    /// How often the connection was made anew.
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// The next frame; `None` after the end. Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Result<Frame, Error>> {
        if self.ended {
            return None;
        }
        let frame = self.new_frame().await;
        self.ended = match &frame {
            Ok(frame) => frame.event == "done" && !self.options.follow,
            Err(_) => true,
        };
        Some(frame)
    }

    /// The frames as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Frame, Error>> + Send {
        futures::stream::unfold(self, |mut stream| async move { stream.next().await.map(|frame| (frame, stream)) })
    }

    async fn new_frame(&mut self) -> Result<Frame, Error> {
        loop {
            let Some(connection) = &mut self.connection else {
                self.reconnect().await?;
                continue;
            };
            match connection.next().await {
                Ok(Some(Parsed::Comment)) => self.attempts = 0,
                Ok(Some(Parsed::Frame(frame))) => {
                    if self.cursor.observe(&frame) == Verdict::New {
                        if frame.id.is_some() {
                            self.attempts = 0;
                        }
                        return Ok(frame);
                    }
                }
                Ok(None) => {
                    let reason = "it ended before the turn was done".to_owned();
                    self.failed(Error::Cut { url: self.client.url(), reason })?;
                }
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// Takes note of a failure; an error where it is final.
    fn failed(&mut self, error: Error) -> Result<(), Error> {
        self.connection = None;
        if !error.is_transient() {
            return Err(error);
        }
        let random = Uuid::new_v4().as_fields().0;
        match self.client.reconnect().wait(self.attempts + 1, error.retry_after(), random) {
            Some(wait) => {
                self.attempts += 1;
                self.wait = Some(wait);
                Ok(())
            }
            None => Err(error),
        }
    }

    async fn reconnect(&mut self) -> Result<(), Error> {
        if let Some(wait) = self.wait {
            tokio::time::sleep(wait).await;
            self.wait = None;
        }
        match self.connect().await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.reconnects += 1;
                Ok(())
            }
            Err(error) => self.failed(error),
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let position = self.cursor.position();
        let response = match (&self.source, position) {
            (Source::Message { body, key }, None) => self.client.post_message(&self.session, body.clone(), key).await?,
            _ => self.client.get_stream(&self.session, position, self.options).await?,
        };
        Ok(Connection::new(response))
    }
}
