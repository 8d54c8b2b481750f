//! Turns and their permission requests: one turn at a time, the first answer wins. Pure.

use std::collections::{BTreeMap, VecDeque};

use ash_protocol::{Sequence, message::RunningTurn};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Finished turns whose repetition is recognised.
pub const MAX_FINISHED_TURNS: usize = 64;

/// Permission requests that may be open at a time; one more is denied at once.
pub const MAX_OPEN_PERMISSIONS: usize = 64;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It begins a turn.
    Begin,
    /// It is running or done: nothing happens.
    Repeat,
    /// Another turn runs.
    Busy,
}

/// A tool call that waits for consent.
#[derive(Debug, Clone)]
pub struct OpenPermission {
    /// The tool's input, as it came: an answer without another input repeats it.
    pub input: Box<RawValue>,
    /// Milliseconds since 1970 at which it is denied.
    pub expires_at_ms: i64,
}

/// A turn in progress.
#[derive(Debug)]
struct Running {
    turn: RunningTurn,
    permission_timeout_ms: u64,
}

/// The turns of a session.
#[derive(Debug, Default)]
pub struct Turns {
    running: Option<Running>,
    finished: VecDeque<Uuid>,
    permissions: BTreeMap<String, OpenPermission>,
}

impl Turns {
    /// What becomes of a message with this uuid.
    pub fn admission(&self, turn: Uuid) -> Admission {
        match &self.running {
            Some(running) if running.turn.id == turn => Admission::Repeat,
            _ if self.finished.contains(&turn) => Admission::Repeat,
            Some(_) => Admission::Busy,
            None => Admission::Begin,
        }
    }

    /// A turn begins with this entry of the log.
    pub fn begin(&mut self, id: Uuid, first: Sequence, permission_timeout_ms: u64) {
        self.running = Some(Running { turn: RunningTurn { id, first }, permission_timeout_ms });
    }

    /// The turn in progress.
    pub fn running(&self) -> Option<&RunningTurn> {
        self.running.as_ref().map(|running| &running.turn)
    }

    /// Whether the end of one more turn has an older one forgotten.
    pub fn forgets(&self) -> bool {
        self.running.is_some() && self.finished.len() >= MAX_FINISHED_TURNS
    }

    /// The turn in progress ends; returns it. Permission requests that are still open go with [`Turns::withdraw_all`] before.
    pub fn end(&mut self) -> Option<Uuid> {
        let id = self.running.take()?.turn.id;
        self.finished.push_back(id);
        if self.finished.len() > MAX_FINISHED_TURNS {
            self.finished.pop_front();
        }
        Some(id)
    }

    /// Opens a permission request of the running turn; returns the turn and the time at which the request expires. `None` when
    /// no turn runs, too many are open, or one of that id is: deny it.
    pub fn ask(&mut self, id: &str, input: Box<RawValue>, now_ms: i64) -> Option<(Uuid, i64)> {
        let running = self.running.as_ref()?;
        if self.permissions.len() >= MAX_OPEN_PERMISSIONS || self.permissions.contains_key(id) {
            return None;
        }
        let timeout = i64::try_from(running.permission_timeout_ms).unwrap_or(i64::MAX);
        let expires_at_ms = now_ms.saturating_add(timeout);
        self.permissions.insert(id.to_owned(), OpenPermission { input, expires_at_ms });
        Some((running.turn.id, expires_at_ms))
    }

    /// Takes an open permission request: whoever takes it decides it.
    pub fn take(&mut self, id: &str) -> Option<OpenPermission> {
        self.permissions.remove(id)
    }

    /// Takes every permission request that is open.
    pub fn withdraw_all(&mut self) -> Vec<String> {
        std::mem::take(&mut self.permissions).into_keys().collect()
    }

    /// Takes the permission requests whose time is up.
    pub fn expire(&mut self, now_ms: i64) -> Vec<String> {
        let expired: Vec<String> = self
            .permissions
            .iter()
            .filter(|(_, open)| open.expires_at_ms <= now_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &expired {
            self.permissions.remove(id);
        }
        expired
    }

    /// When the next permission request expires, in milliseconds since 1970.
    pub fn next_expiry_ms(&self) -> Option<i64> {
        self.permissions.values().map(|open| open.expires_at_ms).min()
    }

    /// The ids of the open permission requests.
    pub fn open_permissions(&self) -> Vec<String> {
        self.permissions.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::Epoch;
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::{Admission, MAX_FINISHED_TURNS, MAX_OPEN_PERMISSIONS, Turns};

    fn input() -> Box<RawValue> {
        RawValue::from_string("{}".to_owned()).unwrap()
    }

    fn id(n: u8) -> Uuid {
        Uuid::from_u128(u128::from(n))
    }

    #[test]
    fn one_turn_at_a_time_and_repeats_do_nothing() {
        let mut turns = Turns::default();
        assert_eq!(turns.admission(id(1)), Admission::Begin);
        turns.begin(id(1), Epoch(1).sequence(2), 10);
        assert_eq!(turns.admission(id(1)), Admission::Repeat);
        assert_eq!(turns.admission(id(2)), Admission::Busy);
        assert_eq!(turns.end(), Some(id(1)));
        assert_eq!(turns.end(), None);
        assert_eq!(turns.admission(id(1)), Admission::Repeat);
        assert_eq!(turns.admission(id(2)), Admission::Begin);
    }

    #[test]
    fn the_first_answer_wins() {
        let mut turns = Turns::default();
        assert!(turns.ask("a", input(), 0).is_none(), "no turn, nobody to ask");
        turns.begin(id(1), Epoch(1).sequence(2), 10);
        assert_eq!(turns.ask("a", input(), 5), Some((id(1), 15)));
        assert!(turns.ask("a", input(), 5).is_none(), "one of that id is open");
        assert!(turns.take("a").is_some());
        assert!(turns.take("a").is_none());
    }

    #[test]
    fn expiry_takes_what_is_due_and_nothing_else() {
        let mut turns = Turns::default();
        turns.begin(id(1), Epoch(1).sequence(2), 10);
        turns.ask("a", input(), 0).unwrap();
        turns.ask("b", input(), 5).unwrap();
        assert_eq!(turns.next_expiry_ms(), Some(10));
        assert_eq!(turns.expire(10), ["a"]);
        assert_eq!(turns.open_permissions(), ["b"]);
        assert_eq!(turns.withdraw_all(), ["b"]);
        assert_eq!(turns.next_expiry_ms(), None);
    }

    proptest! {
        #[test]
        fn bounds_hold_whatever_happens(acts in prop::collection::vec((0u8..4, any::<u8>()), 0..400)) {
            let mut turns = Turns::default();
            for (act, n) in acts {
                match act {
                    0 if turns.admission(id(n)) == Admission::Begin => turns.begin(id(n), Epoch(1).sequence(2), 10),
                    1 => { turns.ask(&n.to_string(), input(), i64::from(n)); }
                    2 => { turns.expire(i64::from(n)); }
                    3 => {
                        if let Some(ended) = turns.end() {
                            prop_assert_eq!(turns.admission(ended), Admission::Repeat);
                        }
                    }
                    _ => {}
                }
                prop_assert!(turns.finished.len() <= MAX_FINISHED_TURNS);
                prop_assert!(turns.permissions.len() <= MAX_OPEN_PERMISSIONS);
            }
        }
    }
}
