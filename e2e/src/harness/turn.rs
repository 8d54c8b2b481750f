//! A turn as its client saw it.

use ash_client::{Event, Frame, FrameStream};

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
    pub async fn read(mut stream: FrameStream) -> Self {
        let mut turn = Self::default();
        while let Some(frame) = stream.next().await {
            turn.frames.push(frame.expect("the stream goes on"));
        }
        turn
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
