//! The first message of a session: sent once, whoever is restarted. Its turn has the same id whenever it is sent, so that a
//! repeat joins the turn that is there.

use std::sync::Arc;

use ash_core::{
    id::SessionId,
    ports::{NewMessage, RunnerError},
    session::Session as Row,
};
use ash_crd::{
    FirstMessage, Session,
    condition::{self, ConditionType},
};
use ash_protocol::options::TurnOptions;
use kube::ResourceExt as _;
use serde_json::value::to_raw_value;
use tokio::time::sleep;

use super::decide::Message;
use crate::{
    error::StepError,
    limits::{MAX_REMEMBERED, MESSAGE_RETRY},
    namespace::Namespace,
};

/// How far it is.
pub(super) async fn state(
    namespace: &Namespace,
    session: &Session,
    id: SessionId,
    has_row: bool,
) -> Result<Message, StepError> {
    if session.spec.message.is_none() {
        return Ok(Message::None);
    }
    let conditions = session.status.as_ref().map_or(&[][..], |status| &status.conditions);
    if condition::is_true(conditions, ConditionType::MessageTaken) {
        return Ok(Message::Taken);
    }
    if has_row && namespace.ports.store.turn(id, FirstMessage::turn(id)).await?.is_some() {
        return Ok(Message::Taken);
    }
    let memory = namespace.memory();
    Ok(match memory.messages.get(&id) {
        Some(Ok(())) => Message::Taken,
        Some(Err(why)) => Message::Failed(why.clone()),
        None if memory.sending.contains(&id) => Message::Sending,
        None => Message::Waiting,
    })
}

/// Begins to send it. A message waits for its session's sandbox, so nobody waits for the message.
pub(super) async fn send(namespace: &Arc<Namespace>, session: &Session, row: &Row) -> Result<(), StepError> {
    let Some(message) = &session.spec.message else { return Ok(()) };
    let version = super::row::version(namespace, row).await?;
    // The agent's limits are the runner's to add, as for every other message.
    let options = match message.options(&TurnOptions::default()) {
        Ok(options) => options,
        Err(wrong) => {
            over(namespace, row.id, Err(wrong.to_string()));
            return Ok(());
        }
    };
    let content = to_raw_value(&message.content).map_err(|error| StepError::Internal(error.to_string()))?;
    let new = NewMessage { turn: FirstMessage::turn(row.id), content, options };
    if !namespace.memory().sending.insert(row.id) {
        return Ok(());
    }
    let (namespace, row, name) = (Arc::clone(namespace), row.clone(), session.name_any());
    tokio::spawn(async move {
        let sent = namespace.ports.runner.send(row.clone(), version, new).await.map(|_| ());
        match sent {
            Ok(()) => over(&namespace, row.id, Ok(())),
            // These will be the same every time.
            Err(error @ (RunnerError::OptionRefused(_) | RunnerError::LogFull { .. })) => {
                over(&namespace, row.id, Err(error.to_string()));
            }
            Err(error) => {
                tracing::info!(namespace = %namespace.name, session = %name, %error, "the first message is sent again");
                sleep(MESSAGE_RETRY).await;
            }
        }
        namespace.memory().sending.remove(&row.id);
        namespace.trigger_session(&name);
    });
    Ok(())
}

fn over(namespace: &Namespace, id: SessionId, end: Result<(), String>) {
    let mut memory = namespace.memory();
    if memory.messages.len() >= MAX_REMEMBERED {
        memory.messages.clear();
    }
    memory.messages.insert(id, end);
}
