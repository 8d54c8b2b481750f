//! A turn as its client saw it.

use ash_client::{Event, Frame, FrameStream};

use super::DEADLINE;

/// Everything that a stream gave, to its end.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// All frames, in order.
    pub frames: Vec<Frame>,
}

impl Turn {
    /// Reads a stream to its end.
    ///
    /// # Panics
    /// When the stream ends with an error.
    pub async fn read(stream: FrameStream) -> Self {
        Self::read_while(stream, async |_| ()).await
    }

    /// Reads a stream to its end, and does something after each frame: it is given how many there were.
    ///
    /// # Panics
    /// When the stream ends with an error.
    pub async fn read_while(mut stream: FrameStream, mut after: impl AsyncFnMut(usize)) -> Self {
        let mut turn = Self::default();
        while let Some(frame) = turn.next(&mut stream).await {
            turn.frames.push(frame);
            after(turn.frames.len()).await;
        }
        turn
    }

    /// The next frame; a stream that says nothing for too long fails its test.
    pub(super) async fn next(&self, stream: &mut FrameStream) -> Option<Frame> {
        let next = tokio::time::timeout(DEADLINE, stream.next()).await;
        let next = next.unwrap_or_else(|_| panic!("the stream says no more after {:?}", self.names()));
        next.map(|frame| frame.expect("the stream goes on"))
    }

    /// Reads a stream on until a frame of this type, and gives what it says.
    ///
    /// # Panics
    /// When the stream ends before, or with an error.
    pub async fn read_until(&mut self, stream: &mut FrameStream, name: &str) -> Event {
        while let Some(frame) = self.next(stream).await {
            self.frames.push(frame.clone());
            if frame.event == name {
                return frame.read().expect("a frame of the contract");
            }
        }
        panic!("the stream ended without {name}: {:?}", self.names());
    }

    /// Reads a stream on to its end.
    ///
    /// # Panics
    /// When the stream ends with an error.
    pub async fn read_rest(&mut self, stream: FrameStream) {
        self.frames.append(&mut Self::read(stream).await.frames);
    }

    /// The events of the frames.
    ///
    /// # Panics
    /// When a frame is none of the contract.
    pub fn events(&self) -> Vec<Event> {
        self.frames.iter().map(|frame| frame.read().expect("a frame of the contract")).collect()
    }

    /// The names of the frames.
    pub fn names(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.event.as_str()).collect()
    }

    /// The text of the deltas.
    pub fn deltas(&self) -> String {
        self.events()
            .into_iter()
            .filter_map(|event| if let Event::TextDelta(text) = event { Some(text) } else { None })
            .collect()
    }

    /// The final text.
    pub fn result(&self) -> Option<String> {
        self.events().into_iter().find_map(|event| match event {
            Event::TurnComplete { result, .. } => result,
            _ => None,
        })
    }

    /// The first error.
    pub fn error(&self) -> Option<String> {
        self.events().into_iter().find_map(|event| if let Event::Error(text) = event { Some(text) } else { None })
    }

    /// Claude Code's own messages of a type, as JSON.
    ///
    /// # Panics
    /// When one is no JSON.
    pub fn messages(&self, kind: &str) -> Vec<serde_json::Value> {
        self.events()
            .into_iter()
            .filter_map(|event| match event {
                Event::Message(raw) => Some(serde_json::from_str(raw.get()).expect("a message is JSON")),
                _ => None,
            })
            .filter(|message: &serde_json::Value| message["type"] == kind)
            .collect()
    }
}
