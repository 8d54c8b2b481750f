//! Compaction: which partial messages of a finished turn need not be kept, because a complete message stands for them.
//!
//! Partials between two complete lines of Claude Code are a *range*. It may go once complete messages stand for all that it said: the
//! `assistant` line of the same message of the model, or the bridge's word that the call was made again. A range that says nothing
//! (the stops behind a complete message) may go with any complete line. What nothing stands for, as when a turn is cut off in the
//! middle of a sentence, stays; an error that Claude Code puts into the form of a message stands for nothing, nor does a
//! sub-agent's message for what the agent said.

use std::collections::{HashMap, HashSet};

use ash_protocol::{Entry, EntryFlags, EntryKind, Sequence, claude::Line, message::BridgeEvent};
use bytes::Bytes;
use serde::Deserialize;

/// The model of messages that Claude Code writes itself.
const SYNTHETIC: &str = "<synthetic>";

/// Messages of which a range may have parts. One with parts of more stays: an agent has some ten sub-agents at the most.
const MAX_SPEAKERS: usize = 64;

/// Partials that are dropped: all of them from one sequence through another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The first.
    pub from: Sequence,
    /// The last.
    pub to: Sequence,
}

impl Dropped {
    /// What stands in the log in their place, at the last one's sequence: the bridge's word for partials that do not count any more,
    /// which readers of every release know.
    ///
    /// # Panics
    /// Never: the JSON of this type has string keys only.
    #[allow(clippy::expect_used, reason = "serialising our own type to memory cannot fail")]
    pub fn entry(self) -> Entry {
        let event = BridgeEvent::Superseded { from: self.from, to: self.to };
        Entry {
            sequence: self.to,
            kind: EntryKind::Bridge,
            flags: EntryFlags::FOR_PARTIALS,
            body: Bytes::from(serde_json::to_vec(&event).expect("an event has string keys")),
        }
    }

    /// The partials that an entry of [`Self::entry`] stands for; `None` for any other.
    pub fn read(entry: &Entry) -> Option<Self> {
        if entry.kind != EntryKind::Bridge || !entry.flags.contains(EntryFlags::FOR_PARTIALS) {
            return None;
        }
        match serde_json::from_slice(&entry.body) {
            Ok(BridgeEvent::Superseded { from, to }) => Some(Self { from, to }),
            _ => None,
        }
    }
}

/// Finds what may be dropped in the entries of one finished turn, given in order. Holds positions, no entries.
#[derive(Debug, Default)]
pub struct Compaction {
    open: Option<Dropped>,
    /// What was said in the open range, by message, and is not said as a whole yet.
    said: Said,
    /// The message that each agent of the turn is in the middle of, by the call that the agent is for; none for the first.
    speaking: HashMap<Option<String>, String>,
    /// Whether beginnings of messages may have been dropped by a compaction before: what follows it without one was to stay.
    follows_dropped: bool,
    dropped: Vec<Dropped>,
}

/// A message of the model: the call that its agent is for, and its id where that is known.
type Message = (Option<String>, Option<String>);

/// Messages of which a range has a part.
#[derive(Debug, Default)]
struct Said {
    messages: HashSet<Message>,
    /// There was more than can be told: nothing stands for it.
    is_more: bool,
}

impl Said {
    fn is_nothing(&self) -> bool {
        self.messages.is_empty() && !self.is_more
    }

    fn add(&mut self, message: Message) {
        if self.messages.len() < MAX_SPEAKERS {
            self.messages.insert(message);
        } else {
            self.is_more |= !self.messages.contains(&message);
        }
    }
}

impl Compaction {
    /// Looks at the next entry.
    pub fn take(&mut self, entry: &Entry) {
        if let Some(dropped) = Dropped::read(entry) {
            // A compaction that was cut off had decided this much: what it did not come to is seen without what it dropped behind it.
            while self.dropped.pop_if(|range| range.from >= dropped.from).is_some() {}
            self.forget();
            self.follows_dropped = true;
            self.dropped.push(dropped);
            return;
        }
        match entry.kind {
            EntryKind::Partial => {
                let from = self.open.map_or(entry.sequence, |open| open.from);
                self.open = Some(Dropped { from, to: entry.sequence });
                self.hear(&entry.body);
            }
            EntryKind::Claude => {
                if let Some((agent, id)) = complete_message(&entry.body) {
                    // One whose beginning was not seen is any message of its agent.
                    self.said.messages.remove(&(agent.clone(), None));
                    self.said.messages.remove(&(agent, id));
                }
                if self.said.is_nothing() {
                    self.close();
                }
            }
            EntryKind::Bridge if matches!(serde_json::from_slice(&entry.body), Ok(BridgeEvent::Superseded { .. })) => {
                self.close();
            }
            EntryKind::Opening => self.forget(),
            EntryKind::Bridge | EntryKind::User | EntryKind::Transcript => {}
        }
    }

    /// What may be dropped, in order.
    pub fn finish(self) -> Vec<Dropped> {
        self.dropped
    }

    /// Notes of which message a partial is a part. One that cannot be read might be of any.
    fn hear(&mut self, line: &[u8]) {
        let Ok(Partial { event, parent_tool_use_id: agent }) = serde_json::from_slice(line) else {
            self.said.is_more = true;
            return;
        };
        match event.kind.as_str() {
            "message_start" => {
                if let Some(id) = event.message.and_then(|message| message.id)
                    && (self.speaking.len() < MAX_SPEAKERS || self.speaking.contains_key(&agent))
                {
                    self.speaking.insert(agent, id);
                }
            }
            "content_block_start" | "content_block_delta" => {
                let id = self.speaking.get(&agent).cloned();
                self.said.is_more |= id.is_none() && self.follows_dropped;
                self.said.add((agent, id));
            }
            _ => {}
        }
    }

    fn close(&mut self) {
        self.dropped.extend(self.open.take());
        self.said = Said::default();
    }

    fn forget(&mut self) {
        (self.open, self.said) = (None, Said::default());
        self.speaking.clear();
        self.follows_dropped = false;
    }
}

/// What becomes of the entries of a batch's partial chunk, in order, when `dropped` is dropped; `None` where nothing changes.
pub fn rewrite(entries: &[Entry], dropped: &[Dropped]) -> Option<Vec<Entry>> {
    let range_of = |entry: &Entry| {
        let at = dropped.partition_point(|range| range.to < entry.sequence);
        dropped.get(at).filter(|range| range.from <= entry.sequence && entry.kind == EntryKind::Partial)
    };
    let kept: Vec<Entry> = entries
        .iter()
        .filter_map(|entry| match range_of(entry) {
            None => Some(entry.clone()),
            Some(range) if range.to == entry.sequence => Some(range.entry()),
            Some(_) => None,
        })
        .collect();
    (kept != entries).then_some(kept)
}

/// A `stream_event`, as far as it says whose it is.
#[derive(Deserialize)]
struct Partial {
    event: Event,
    #[serde(default)]
    parent_tool_use_id: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    /// Of a `message_start`.
    #[serde(default)]
    message: Option<Identified>,
}

#[derive(Deserialize)]
struct Identified {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
}

/// The message of the model that a line has a whole part of.
fn complete_message(line: &[u8]) -> Option<Message> {
    #[derive(Deserialize)]
    struct Assistant {
        message: Identified,
        #[serde(default)]
        parent_tool_use_id: Option<String>,
    }
    if !matches!(Line::parse(line), Ok(Line::Other(kind)) if kind == "assistant") {
        return None;
    }
    let Assistant { message, parent_tool_use_id } = serde_json::from_slice(line).ok()?;
    (message.model.as_deref() != Some(SYNTHETIC)).then_some((parent_tool_use_id, message.id))
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
