//! The scripted model: a small server that speaks the streaming Messages API and follows a script.
//!
//! The real Claude Code runs against it, so that tests, benchmarks and the quickstart need neither the internet nor a key.
//! It is a test tool: nothing of the product depends on it.
//!
//! A script comes in two forms. [`Script::queue`] and [`Script::answer`] decide in the process of a test. [`Script::directives`]
//! (what the other two fall back to) follows what the user's text itself says, which works for a person and for a test in another
//! process too. The model keeps no conversation: where it stands in a text's directives follows from the history that it is
//! shown. Only how often an `xN` directive has already struck is remembered.
//!
//! # Directives
//!
//! They are read from the last text of the user (blocks that are only `<system-reminder>`s and the like do not count), in order.
//! Text around them is ignored. A directive ends at the first `]]`; the input of a tool call is read as JSON, so `]]` inside it is
//! fine. A malformed directive answers 400 and says what is wrong with it.
//!
//! | directive | what happens |
//! |---|---|
//! | `[[text: hello there]]` | a text block, one delta per word |
//! | `[[burst: 2000]]`, `[[burst: 2000 64]]` | a text block of that many deltas: `0 1 2 ...`, or of that many bytes each |
//! | `[[think: ...]]` | a thinking block, one delta per word, with a signature |
//! | `[[delay: 50ms]]`, `[[delay: 2s]]` | waits here; before anything else it holds back the whole response, status line included |
//! | `[[pace: 5ms]]` | from here on waits before each delta of this response |
//! | `[[tool: Bash {"command":"echo hi"}]]` | calls a tool and ends the response; what follows is said after its result |
//! | `[[and-tool: Read {...}]]` | one more call in the same response as the call before it |
//! | `[[result]]` | says the text of the last tool result |
//! | `[[error: 529]]`, `[[error: 529 x2]]`, `[[error: 429 retry-after=3 x1]]` | answers with that status: always, or the first times |
//! | `[[stream-error: overloaded_error x1]]` | an `error` event in the middle of the stream, which then ends |
//! | `[[cut: 5]]`, `[[cut: 5 x1]]`, `[[cut: 5 reset]]` | the connection ends 50 ms after 5 deltas of this response (`reset`: with a TCP reset) |
//! | `[[cut: before]]` | the connection ends before any byte of an answer |
//! | `[[stop]]`, `[[stop: max_tokens]]` | ends the turn here, with that stop reason |
//! | `[[usage: 1000 20]]` | reports these input and output tokens |
//! | `[[history]]` | says a JSON list of the user's texts that it was shown, this one included |
//! | `[[count]]` | says how many those are |
//! | `[[echo-system]]` | says the system prompt |
//! | `[[request]]` | says JSON: model, `max_tokens`, thinking, `output_config`, metadata, names of tools, ... as it was shown them |
//!
//! `error`, `stream-error` and `cut` with `xN` strike N times per turn of the user, then let the rest of the response through.
//! A cut waits 50 ms first: a client that gets data and the end in one go may throw the data away, as Claude Code does. After a
//! cut inside the first block Claude Code asks again; after a complete block it keeps that block and asks the model to resume,
//! and then this model begins the same response anew (a tool call that was complete is not repeated: its result is shown).
//! With no directive the reply begins with `You said: ` and the text (see [`small_talk`]).
//!
//! # Helper requests
//!
//! Claude Code also asks for titles and summaries of its own. Such a request offers no tools; it gets one short text, takes
//! nothing from a queue, and is recorded as [`RequestKind::Helper`]. The request of `/compact` offers tools like any other: it does
//! take an entry of a queue, and without one it gets a summary that lists the user's texts.

mod body;
mod connection;
mod conversation;
mod directive;
mod plan;
mod record;
mod render;
mod reply;
mod script;
mod server;
pub mod small_talk;

pub use conversation::{ModelRequest, ToolResult};
pub use directive::{Directive, DirectiveError, parse};
pub use record::{RecordedRequest, RequestKind, Said, ToolCall};
pub use reply::{Cut, Reply};
pub use script::Script;
pub use server::{ModelError, ScriptedModel};
