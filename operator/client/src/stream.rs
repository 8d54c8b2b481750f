//! A stream that survives its connections.

use std::time::Duration;

use ash_core::sse::Position;
use bytes::Bytes;
use futures::Stream;
use uuid::Uuid;

use crate::{
    Client, Error, Frame, Parsed, answer,
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

/// What a stream gives to a reader that shows its connection too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A frame.
    Frame(Frame),
    /// The connection was lost. The stream connects again by itself; this is said once, however many attempts that takes.
    Lost {
        /// How.
        reason: String,
    },
    /// It is there again: what follows is what came after this position, with no gap and nothing twice.
    Resumed {
        /// The position; `None` where a message had no frame with a position yet, and was sent again under its key.
        after: Option<String>,
    },
}

/// A stream of frames. Where the connection is cut it reconnects (see [`Reconnect`](crate::Reconnect)), so that every frame is
/// seen once and in order. It ends after `done`, or with an error; with `follow` it ends only with an error.
///
/// A stream *from now on* begins where the server says that it does, also when it is cut before its first frame.
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
    repeated: u64,
    /// Why the connection was lost, until that was told.
    lost: Option<String>,
    /// That it was lost was noted, and no connection was made since.
    is_lost: bool,
    ended: bool,
}

impl FrameStream {
    /// Opens a stream. The first connection is not tried again where nobody answers or the server refuses; it is where the connection
    /// was cut, by the server's end or by that of the one behind a proxy.
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
            repeated: 0,
            lost: None,
            is_lost: false,
            ended: false,
        };
        match stream.connect().await {
            Ok(connection) => stream.connection = Some(connection),
            Err(error) if error.is_cut() => stream.failed(error)?,
            Err(error) => return Err(error),
        }
        Ok(stream)
    }

    /// The position of the last frame, or else of the stream's beginning, to go on from with [`Client::stream`]; `None` before the
    /// first frame of a message's answer.
    pub fn position(&self) -> Option<String> {
        self.cursor.position().map(|position| position.to_string())
    }

    /// How often the connection was made anew.
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// How many frames with a position came again and were left out. A server that keeps the contract sends none twice.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// The next frame; `None` after the end. Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Result<Frame, Error>> {
        loop {
            match self.step().await? {
                Ok(Step::Frame(frame)) => return Some(Ok(frame)),
                Ok(Step::Lost { .. } | Step::Resumed { .. }) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next frame, or what became of the connection; `None` after the end. Nothing is lost when the future is dropped before
    /// it is ready.
    pub async fn step(&mut self) -> Option<Result<Step, Error>> {
        if self.ended {
            return None;
        }
        let step = self.new_step().await;
        self.ended = match &step {
            Ok(Step::Frame(frame)) => frame.event == "done" && !self.options.follow,
            Ok(_) => false,
            Err(_) => true,
        };
        Some(step)
    }

    /// The frames as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Frame, Error>> + Send {
        futures::stream::unfold(self, |mut stream| async move { stream.next().await.map(|frame| (frame, stream)) })
    }

    async fn new_step(&mut self) -> Result<Step, Error> {
        loop {
            let Some(connection) = &mut self.connection else {
                if let Some(reason) = self.lost.take() {
                    return Ok(Step::Lost { reason });
                }
                if self.reconnect().await? {
                    return Ok(Step::Resumed { after: self.position() });
                }
                continue;
            };
            match connection.next().await {
                Ok(Some(Parsed::Comment)) => self.attempts = 0,
                Ok(Some(Parsed::Frame(frame))) => {
                    if self.cursor.observe(&frame) == Verdict::New {
                        if frame.id.is_some() {
                            self.attempts = 0;
                        }
                        return Ok(Step::Frame(frame));
                    }
                    self.repeated += u64::from(frame.id.is_some());
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
        let Some(wait) = self.client.reconnect().wait(self.attempts + 1, error.retry_after(), random) else {
            return Err(error);
        };
        self.attempts += 1;
        self.wait = Some(wait);
        if !std::mem::replace(&mut self.is_lost, true) {
            self.lost = Some(error.to_string());
        }
        Ok(())
    }

    /// One attempt; whether it gave a connection.
    async fn reconnect(&mut self) -> Result<bool, Error> {
        if let Some(wait) = self.wait {
            tokio::time::sleep(wait).await;
            self.wait = None;
        }
        match self.connect().await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.reconnects += 1;
                self.is_lost = false;
                Ok(true)
            }
            Err(error) => self.failed(error).map(|()| false),
        }
    }

    async fn connect(&mut self) -> Result<Connection, Error> {
        let position = self.cursor.position();
        let response = match (&self.source, position) {
            (Source::Message { body, key }, None) => self.client.post_message(&self.session, body.clone(), key).await?,
            _ => self.client.get_stream(&self.session, position, self.options).await?,
        };
        if position.is_none()
            && let Some(begins) = answer::position(&response)
        {
            self.cursor = Cursor::after(Some(begins));
        }
        Ok(Connection::new(response))
    }
}
