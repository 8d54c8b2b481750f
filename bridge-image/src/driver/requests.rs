//! What becomes of the host's requests to the session.

use ash_protocol::{
    EntryFlags, EntryKind, Sequence,
    message::{
        Admit, Behavior, Bind, Bound, Claimed, Decision, Refusal, RefusalCategory, Request, Resolution, RestartReason,
        Rested, TurnFailure, Warm, Warmed,
    },
    options::{SessionOptions, TurnOptions},
};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Driver, INTERRUPT, Interrupt, REPEAT_INTERRUPT, Session,
    lifecycle::{ChangeError, Start},
};
use crate::{
    claude::{control, partials::Partials, transcript::Transcript},
    link::Command,
    log::Log,
    options::{Plan, Wanted, plan},
    phase::{Binding, Owner, Phase, Rest},
    shared::{Caller, refusal},
    turn::{Admission, Turns},
};

const NO_SESSION: &str = "no session has claimed this sandbox";

impl Driver {
    pub(super) async fn command(&mut self, command: Command) {
        let Command { request, caller } = command;
        match request {
            Request::Warm(warm) => {
                let warmed = self.warm(*warm).await;
                caller.answer(warmed);
            }
            Request::Bind(bind) => {
                let bound = self.bind(*bind).await;
                caller.answer(bound);
            }
            Request::Rest {} => {
                let rested = self.rest().await;
                caller.answer(rested);
            }
            Request::Configure { options } => {
                let configured = self.configure(options).await;
                caller.answer(configured);
            }
            Request::Admit(admit) => self.admit(*admit, caller).await,
            Request::Interrupt { turn } => {
                self.interrupt(turn);
                caller.done(&());
            }
            Request::Answer { permission, decision } => caller.answer(self.answer(permission, &decision)),
            // Everything else is carried out elsewhere.
            _ => caller.refuse(RefusalCategory::Invalid, "this is no request for a session"),
        }
    }

    async fn warm(&mut self, warm: Warm) -> Result<Warmed, Refusal> {
        if let Some(answer) = self.warmth.as_ref().and_then(|warmth| warmth.answer.clone()) {
            return Ok(answer);
        }
        let version = self.prepare(&warm).await?;
        let wanted = self.wanted(&warm.options, &TurnOptions::default());
        let mut rehearsed = false;
        self.start(&Start { wanted: &wanted, resume: warm.resume }).await.map_err(ChangeError::into_refusal)?;
        if warm.rehearse && warm.resume.is_none() {
            rehearsed = self.rehearse().await.map_err(ChangeError::into_refusal)?;
        }
        let answer = Warmed { version, rehearsed };
        if let Some(warmth) = &mut self.warmth {
            warmth.answer = Some(answer.clone());
        }
        self.publish();
        Ok(answer)
    }

    async fn bind(&mut self, bind: Bind) -> Result<Bound, Refusal> {
        match self.phase().binding(Owner { session: bind.session, epoch: bind.epoch }) {
            Binding::Take => self.take(bind).await,
            Binding::Wake => self.wake(bind).await,
            // The answer was lost with an earlier connection.
            Binding::Repeat => Ok(Bound { how: self.session.as_ref().map_or(Claimed::Live, |session| session.how) }),
            Binding::Refused(reason) => Err(refusal(RefusalCategory::NotReady, reason)),
        }
    }

    /// Gives a warm sandbox to a session.
    async fn take(&mut self, bind: Bind) -> Result<Bound, Refusal> {
        let Some(transcripts) = self.warmth.as_ref().map(|warmth| warmth.transcripts.clone()) else {
            return Err(refusal(RefusalCategory::NotReady, "the sandbox has to be warmed before it is claimed"));
        };
        let wanted = self.wanted(&bind.options, &TurnOptions::default());
        let how = self.take_identity(&wanted, bind.resume).await.map_err(ChangeError::into_refusal)?;
        let conversation = bind.resume.or(self.conversation);
        let transcript = conversation.map(|conversation| {
            let offset = if bind.resume.is_some() { bind.transcript_offset } else { 0 };
            Transcript::new(&transcripts, conversation, offset)
        });
        *self.shared.log.borrow_mut() = Some(Log::new(bind.epoch));
        self.session = Some(Session {
            id: bind.session,
            epoch: bind.epoch,
            how,
            options: bind.options,
            turns: Turns::default(),
            partials: Partials::default(),
            transcript,
            awaited: None,
            has_conversation: bind.resume.is_some(),
            interrupt: None,
            restart: None,
            rests: false,
        });
        let failed = std::mem::take(&mut self.failed_servers);
        self.servers_failed(failed);
        self.publish();
        Ok(Bound { how })
    }

    /// Starts Claude Code again for the session that rests here, with the conversation that was kept.
    async fn wake(&mut self, bind: Bind) -> Result<Bound, Refusal> {
        // Everything of the epoch before was committed before there was a newer one. What starting prints belongs to this one.
        *self.shared.log.borrow_mut() = Some(Log::new(bind.epoch));
        let how = Claimed::Restarted;
        if let Some(session) = &mut self.session {
            (session.epoch, session.options, session.how) = (bind.epoch, bind.options.clone(), how);
            session.partials = Partials::default();
        }
        let wanted = self.wanted(&bind.options, &TurnOptions::default());
        let resume = self.resumable();
        self.start(&Start { wanted: &wanted, resume }).await.map_err(ChangeError::into_refusal)?;
        if let Some(session) = &mut self.session {
            session.rests = false;
        }
        self.publish();
        Ok(Bound { how })
    }

    /// Stops Claude Code between turns; what it wrote of the conversation is in the log before this returns.
    async fn rest(&mut self) -> Result<Rested, Refusal> {
        let turn_runs = self.session.as_ref().is_some_and(|session| session.turns.running().is_some());
        match self.phase().rest(turn_runs) {
            Rest::Stop => self.stop_to_rest().await,
            Rest::Repeat => {}
            Rest::Busy => return Err(refusal(RefusalCategory::TurnInProgress, "a turn is in progress")),
            Rest::NoSession => return Err(refusal(RefusalCategory::NotReady, NO_SESSION)),
        }
        Ok(Rested { last: self.shared.log.borrow().as_ref().map_or(Sequence::START, Log::last) })
    }

    async fn stop_to_rest(&mut self) {
        if let Some(session) = &mut self.session {
            (session.rests, session.restart) = (true, None);
        }
        self.stop().await;
        self.publish();
    }

    /// Whose the sandbox is.
    fn phase(&self) -> Phase {
        match &self.session {
            Some(session) => {
                let owner = Owner { session: session.id, epoch: session.epoch };
                if session.rests { Phase::Resting(owner) } else { Phase::Bound(owner) }
            }
            None if self.warmth.is_some() => Phase::Warm,
            None => Phase::New,
        }
    }

    /// Gives the session other options. Between turns the living process is brought to them at once, as far as it can be without
    /// a restart, so that what Claude Code refuses is refused here; a turn that runs keeps what it began with. The next turn is
    /// brought to the rest.
    async fn configure(&mut self, options: SessionOptions) -> Result<(), Refusal> {
        let Some(session) = &mut self.session else { return Err(refusal(RefusalCategory::NotReady, NO_SESSION)) };
        let before = std::mem::replace(&mut session.options, options.clone());
        if session.turns.running().is_some() || session.rests {
            return Ok(());
        }
        let wanted = self.wanted(&options, &TurnOptions::default());
        let living = self.in_force.as_ref().filter(|_| self.claude.is_some()).map(|in_force| plan(in_force, &wanted));
        if let Some(Plan::Live(steps)) = living
            && let Err(refused @ ChangeError::Refused { .. }) = self.carry_out(steps, &wanted).await
        {
            // What was done before the refusal is known, and undone by the next turn.
            if let Some(session) = &mut self.session {
                session.options = before;
            }
            return Err(refused.into_refusal());
        }
        Ok(())
    }

    /// Brings the process to the session's options and conversation.
    async fn take_identity(&mut self, wanted: &Wanted, resume: Option<Uuid>) -> Result<Claimed, ChangeError> {
        let usable = self.in_force.as_ref().filter(|_| self.claude.is_some() && self.resumed == resume);
        if let Some(Plan::Live(steps)) = usable.map(|in_force| plan(in_force, wanted)) {
            match self.carry_out(steps, wanted).await {
                Ok(()) => return Ok(Claimed::Live),
                Err(refused @ ChangeError::Refused { .. }) => return Err(refused),
                // It died or hangs: a new one takes the session.
                Err(_) => {}
            }
        }
        self.restart(&Start { wanted, resume }).await?;
        Ok(Claimed::Restarted)
    }

    async fn admit(&mut self, admit: Admit, caller: Caller) {
        // The host that it came from would hear of it too late, and the next one was told that no turn runs.
        if caller.is_gone() {
            return;
        }
        let Some(session) = &self.session else {
            return caller.refuse(RefusalCategory::NotReady, NO_SESSION);
        };
        if session.rests {
            return caller.refuse(RefusalCategory::NotReady, "the session rests here: bind it in a newer epoch first");
        }
        match session.turns.admission(admit.turn) {
            Admission::Repeat => return caller.done(&()),
            Admission::Busy => return caller.refuse(RefusalCategory::TurnInProgress, "another turn is in progress"),
            Admission::Begin if self.shared.stop_at().is_some() => {
                return caller.refuse(RefusalCategory::NotReady, "the sandbox is shutting down");
            }
            Admission::Begin => {}
        }
        let options = session.options.clone();
        let wanted = self.wanted(&options, &admit.options);
        let living = self.in_force.as_ref().filter(|_| self.claude.is_some()).map(|in_force| plan(in_force, &wanted));
        let restart = match living {
            // Changes on a living process take milliseconds: a refusal is the answer to the request.
            Some(Plan::Live(steps)) => match self.carry_out(steps, &wanted).await {
                Ok(()) => None,
                Err(refused @ ChangeError::Refused { .. }) => {
                    return caller.answer(Err::<(), _>(refused.into_refusal()));
                }
                Err(_) => Some(RestartReason::Died),
            },
            Some(Plan::Restart) => Some(RestartReason::Options),
            None => Some(RestartReason::Died),
        };
        let line = control::user(&admit.content, admit.turn);
        let Some(first) = self.shared.append(EntryKind::User, EntryFlags::default(), line.clone()) else {
            return caller.refuse(RefusalCategory::NotReady, "the session's epoch is full");
        };
        // Before the turn begins: a conversation without a finished turn may be none yet.
        let resume = restart.and_then(|_| self.resumable());
        if let Some(session) = &mut self.session {
            session.turns.begin(admit.turn, first, admit.permission_timeout_ms);
            session.has_conversation = true;
        }
        self.publish();
        caller.done(&());
        if let Some(reason) = restart {
            // The turn has begun, so from here on a failure is an event.
            match self.restart(&Start { wanted: &wanted, resume }).await {
                Ok(()) => self.restarted(reason),
                Err(error) => return self.fail_turn(error.category(), error.to_string()).await,
            }
        }
        if let Some(in_force) = &mut self.in_force {
            in_force.turn_began();
        }
        self.write(line);
        if self.claude.is_none() {
            self.fail_turn(TurnFailure::ClaudeDied, "Claude Code ended before the turn began".to_owned()).await;
        }
    }

    fn interrupt(&mut self, turn: Option<Uuid>) {
        let Some(session) = &mut self.session else { return };
        let Some(running) = session.turns.running() else { return };
        if turn.is_some_and(|turn| turn != running.id) || session.interrupt.is_some() {
            return;
        }
        let now = Instant::now();
        session.interrupt = Some(Interrupt { give_up: now + INTERRUPT, repeat: now + REPEAT_INTERRUPT });
        self.send_interrupt();
    }

    pub(super) fn send_interrupt(&mut self) {
        let id = self.request_id();
        self.write(control::request(&id, &json!({"subtype": "interrupt"})));
    }

    fn answer(&mut self, permission: String, decision: &Decision) -> Result<(), Refusal> {
        let open = self.session.as_mut().and_then(|session| session.turns.take(&permission));
        let Some(open) = open else {
            let message = "this permission request is not open: it was answered, has expired or was withdrawn";
            return Err(refusal(RefusalCategory::UnknownPermission, message));
        };
        self.write(control::respond(&permission, &control::decide(decision, &open.input)));
        let resolution = match decision.behavior {
            Behavior::Allow => Resolution::Allowed,
            Behavior::Deny => Resolution::Denied,
        };
        self.resolved(permission, resolution);
        Ok(())
    }
}
