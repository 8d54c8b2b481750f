//! One conversation: a person's lines and Ctrl-C on one side, a session's frames on the other.

use std::{collections::VecDeque, io};

use ash_client::{Client, Decision, Error, Event, Frame, FrameStream, Message, Step as StreamStep};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{
    chat::{
        ahead::{Ahead, MAX_LINES_AHEAD},
        asking::{Asking, Step},
        input::Input,
        view::{Shown, View},
    },
    output::{Output, note},
};

/// HTTP's "conflict": somebody else was faster.
const CONFLICT: u16 = 409;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As it should.
    Done,
    /// It failed; that was said.
    Failed,
    /// The person left. The turn goes on without them.
    Left,
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    client: Client,
    session: String,
    view: View,
    input: Input,
    output: Output,
    interrupts: Signal,
    /// Lines that were typed before they were asked for: messages to come.
    ahead: Ahead,
    /// The input has ended.
    ended: bool,
    /// A message that meets another's turn waits for its end.
    may_wait: bool,
}

/// What is going on in a turn.
struct Turn {
    /// Permission requests that wait for the person; the first one is shown.
    asking: VecDeque<Asking>,
    /// Requests to the server beside the stream.
    requests: JoinSet<Result<(), Error>>,
    interrupts: u32,
    failed: bool,
}

impl Conversation {
    /// A conversation in a session. Takes over Ctrl-C.
    pub(super) fn new(
        client: Client,
        session: String,
        view: View,
        input: Input,
        output: Output,
    ) -> anyhow::Result<Self> {
        let interrupts = signal(SignalKind::interrupt())?;
        let ahead = Ahead::default();
        Ok(Self { client, session, view, input, output, interrupts, ahead, ended: false, may_wait: true })
    }

    /// The same, in which a message that meets another's turn is refused, unless it says itself that it may wait.
    pub(super) fn without_waiting(self) -> Self {
        Self { may_wait: false, ..self }
    }

    /// The person's next line; `None` where the input ended or the person pressed Ctrl-C.
    pub(super) async fn line(&mut self, prompt: Option<&str>) -> anyhow::Result<Option<String>> {
        if let Some(prompt) = prompt {
            self.output.raw(prompt.as_bytes())?;
        }
        let line = if let Some(line) = self.ahead.next() {
            if prompt.is_some() {
                self.output.line(&line)?;
            }
            Some(line)
        } else if self.ended {
            None
        } else {
            tokio::select! {
                line = self.input.line() => line.transpose()?,
                _ = self.interrupts.recv() => None,
            }
        };
        if line.is_none() && prompt.is_some() {
            self.output.line("")?;
        }
        Ok(line)
    }

    /// Sends a message and shows its turn to the end.
    pub(super) async fn turn(&mut self, message: &Message) -> anyhow::Result<Outcome> {
        let mut turn = Turn { asking: VecDeque::new(), requests: JoinSet::new(), interrupts: 0, failed: false };
        let client = self.client.clone();
        let session = self.session.clone();
        let patient = Message { queue: true, ..message.clone() };
        let mut may_wait = self.may_wait && !message.queue;
        let opening = client.send_message(&session, message);
        tokio::pin!(opening);
        let mut stream: Option<FrameStream> = None;
        loop {
            let may_answer = !turn.asking.is_empty() && !self.ended;
            tokio::select! {
                opened = &mut opening, if stream.is_none() => match opened {
                    Err(error) if may_wait && error.status() == Some(CONFLICT) => {
                        may_wait = false;
                        self.print(|view| view.say("Another turn runs: the message waits for its end."))?;
                        opening.set(client.send_message(&session, &patient));
                    }
                    opened => stream = Some(opened?),
                },
                step = next(&mut stream), if stream.is_some() => match step.transpose()? {
                    Some(StreamStep::Frame(frame)) => self.frame(&frame, &mut turn)?,
                    Some(StreamStep::Lost { reason }) => self.print(|view| view.lost(&reason))?,
                    Some(StreamStep::Resumed { after }) => self.print(|view| view.resumed(after.as_deref()))?,
                    None => return Ok(if turn.failed { Outcome::Failed } else { Outcome::Done }),
                },
                _ = self.interrupts.recv() => {
                    turn.interrupts += 1;
                    if turn.interrupts > 1 {
                        self.print(|view| view.say("Left; the turn goes on."))?;
                        return Ok(Outcome::Left);
                    }
                    self.interrupt(&mut turn)?;
                }
                line = self.input.line(), if may_answer => self.answer(line, &mut turn)?,
                Some(answered) = turn.requests.join_next(), if !turn.requests.is_empty() => self.answered(answered?)?,
            }
        }
    }

    fn frame(&mut self, frame: &Frame, turn: &mut Turn) -> anyhow::Result<()> {
        let event = frame.read()?;
        self.print(|view| view.show(frame, &event))?;
        match event {
            Event::PermissionRequest { id, tool_name, input, .. } => {
                turn.asking.push_back(Asking::new(id, tool_name, input));
                if turn.asking.len() == 1 {
                    self.ask(turn)?;
                }
            }
            Event::PermissionResolved { id, resolution } => {
                let shown = turn.asking.front().is_some_and(|asking| asking.id == id);
                turn.asking.retain(|asking| asking.id != id);
                if shown {
                    self.print(|view| view.say(&format!("({resolution} already)")))?;
                    self.ask(turn)?;
                }
            }
            Event::Error(_) => turn.failed = true,
            _ => {}
        }
        Ok(())
    }

    /// Asks about the first open request. What was typed before is no answer to it. Where nobody can answer, all are denied.
    fn ask(&mut self, turn: &mut Turn) -> anyhow::Result<()> {
        let mut left_out = 0_usize;
        while let Some(line) = self.input.line_ahead() {
            let line = line?;
            if !self.ahead.keep(line) {
                left_out += 1;
            }
        }
        if left_out > 0 {
            let lines = format!(
                "{MAX_LINES_AHEAD} lines are waiting to be sent: {left_out} more left out, type them again later."
            );
            self.print(|view| view.say(&lines))?;
        }
        if self.ended || !matches!(self.view, View::Terminal(_)) {
            for asking in std::mem::take(&mut turn.asking) {
                self.print(|view| view.say("A tool call needs consent and nobody is here to give it: it is denied."))?;
                self.decide(asking.id, Asking::nobody(), turn);
            }
            return Ok(());
        }
        match turn.asking.front() {
            Some(asking) => self.print(|view| view.ask(&asking.text())),
            None => Ok(()),
        }
    }

    fn answer(&mut self, line: Option<io::Result<String>>, turn: &mut Turn) -> anyhow::Result<()> {
        let Some(line) = line.transpose()? else {
            self.ended = true;
            return self.ask(turn);
        };
        let Some(asking) = turn.asking.front_mut() else { return Ok(()) };
        if let Step::Decided(decision) = asking.answer(&line) {
            let id = std::mem::take(&mut asking.id);
            turn.asking.pop_front();
            self.decide(id, decision, turn);
        }
        self.ask(turn)
    }

    fn decide(&self, request: String, decision: Decision, turn: &mut Turn) {
        let (client, session) = (self.client.clone(), self.session.clone());
        turn.requests.spawn(async move {
            match client.answer_permission(&session, &request, &decision).await {
                // Somebody else answered, or it expired: the stream says which.
                Err(error) if error.status() == Some(CONFLICT) => Ok(()),
                answered => answered,
            }
        });
    }

    fn interrupt(&mut self, turn: &mut Turn) -> anyhow::Result<()> {
        self.view.interrupted();
        turn.asking.clear();
        self.print(|view| view.say("Interrupting … Ctrl-C again leaves."))?;
        let (client, session) = (self.client.clone(), self.session.clone());
        turn.requests.spawn(async move { client.interrupt(&session).await });
        Ok(())
    }

    fn answered(&mut self, answered: Result<(), Error>) -> anyhow::Result<()> {
        match answered {
            Ok(()) => Ok(()),
            Err(error) => self.print(|view| view.say(&format!("error: {error}"))),
        }
    }

    fn print(&mut self, show: impl FnOnce(&mut View) -> Shown) -> anyhow::Result<()> {
        let shown = show(&mut self.view);
        if !shown.output.is_empty() {
            self.output.raw(shown.output.as_bytes())?;
        }
        if let Some(text) = shown.note {
            note(&text);
        }
        Ok(())
    }
}

/// The next step of a stream that is open.
async fn next(stream: &mut Option<FrameStream>) -> Option<Result<StreamStep, Error>> {
    match stream {
        Some(stream) => stream.step().await,
        None => None,
    }
}
