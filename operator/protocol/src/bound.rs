//! The bounds that only a bridge sees: it counts how often it met each and tells its host, whose metrics show it.

use serde::{Deserialize, Serialize};

macro_rules! bounds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// A bound of the bridge; `docs/limits.md` lists them with their values.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum BridgeBound {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)+
        }

        impl BridgeBound {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name, as on the wire and in metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

bounds! {
    /// A line of Claude Code was too long and was dropped.
    Line = "line",
    /// An epoch has no number left.
    Epoch = "epoch",
    /// A request was refused because too many were in progress.
    Requests = "requests",
    /// Data waited for the host's credit.
    Credit = "credit",
    /// The connection was not read from, because data waited to be written away.
    WaitingData = "waiting_data",
    /// A finished turn was forgotten for a newer one.
    FinishedTurns = "finished_turns",
    /// A permission request was denied because it could not be asked.
    OpenPermissions = "open_permissions",
    /// The deadline of a shutdown was shortened.
    Deadline = "deadline",
    /// A turn had not ended when the bridge had to.
    Terminate = "terminate",
    /// Claude Code did not end an interrupted turn in time.
    Interrupt = "interrupt",
    /// An interrupt was repeated.
    RepeatInterrupt = "repeat_interrupt",
    /// Claude Code did not answer a control request in time.
    Control = "control",
    /// MCP servers did not connect in time.
    ConnectServers = "connect_servers",
    /// A rehearsal did not come to its end in time.
    Rehearse = "rehearse",
    /// Claude Code died too often to be started again at once.
    Revivals = "revivals",
    /// A result went out before its message was in the transcript.
    Transcript = "transcript",
    /// A read of a burst was put off.
    ReadPace = "read_pace",
    /// Older bytes of Claude Code's standard error were dropped.
    ErrorBytes = "error_bytes",
    /// Claude Code did not end after its input was closed.
    Close = "close",
    /// A command was killed because its time was up.
    CommandTimeout = "command_timeout",
    /// A list of files was cut.
    Listed = "listed",
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::BridgeBound;

    #[test]
    fn the_name_is_that_on_the_wire() {
        for bound in BridgeBound::ALL {
            assert_eq!(serde_json::to_value(bound).unwrap(), bound.name());
        }
    }
}
