//! A session's variables, which may be secrets: in its row and in the caches they are encrypted, with the row's id and tenant
//! authenticated, where the store was given keys.
//!
//! In the place of the variables stands one whose name no variable can have, with what was encrypted, in base64.

use std::collections::BTreeMap;

use ash_core::{
    id::{SessionId, TenantId},
    ports::{NewSession, StoreError},
    session::Session,
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use secrecy::{ExposeSecret as _, zeroize::Zeroizing};

use crate::seal::{Broken, Keyring};

/// What stands for the variables. A variable's name has no `=` (POSIX, 8.1).
const SEALED: &str = "=sealed";

/// What is authenticated.
fn identity(id: SessionId, tenant: &TenantId) -> Vec<u8> {
    format!("{id}\0session\0{}", tenant.0).into_bytes()
}

fn explain(id: SessionId, broken: Broken) -> StoreError {
    match broken {
        Broken::NoKey | Broken::OtherKey => StoreError::Conflict(format!(
            "the variables of session {id} were encrypted under a key that this server does not have: add that key behind the \
             first one in --credential-key-file"
        )),
        Broken::Changed => StoreError::Damaged(format!("the variables of session {id} are not what was stored")),
        Broken::NoRandom => StoreError::Unavailable("the system has no random numbers".to_owned()),
    }
}

/// Encrypts the variables of a session that is to be stored. A store without keys, as a test has it, stores them as they are.
pub(crate) fn hide(keyring: &Keyring, new: &mut NewSession) -> Result<(), StoreError> {
    hide_of(keyring, new.id, &new.tenant, &mut new.options.environment)
}

/// The same of a session that is stored already.
pub(crate) fn hide_of(
    keyring: &Keyring,
    id: SessionId,
    tenant: &TenantId,
    variables: &mut BTreeMap<String, String>,
) -> Result<(), StoreError> {
    if variables.is_empty() || keyring.is_empty() {
        return Ok(());
    }
    let clear = serde_json::to_vec(variables);
    let clear = Zeroizing::new(clear.map_err(|error| StoreError::Conflict(error.to_string()))?);
    let sealed = keyring.seal(&identity(id, tenant), &clear).map_err(|broken| explain(id, broken))?;
    *variables = BTreeMap::from([(SEALED.to_owned(), STANDARD_NO_PAD.encode(sealed))]);
    Ok(())
}

/// Decrypts the variables of a session that was read.
pub(crate) fn show(keyring: &Keyring, mut session: Session) -> Result<Session, StoreError> {
    let Some(sealed) = session.options.environment.remove(SEALED) else { return Ok(session) };
    let changed = || explain(session.id, Broken::Changed);
    let sealed = STANDARD_NO_PAD.decode(sealed).map_err(|_| changed())?;
    let clear = keyring.open(&identity(session.id, &session.tenant), &sealed);
    let clear = clear.map_err(|broken| explain(session.id, broken))?;
    session.options.environment = serde_json::from_slice(clear.expose_secret()).map_err(|_| changed())?;
    Ok(session)
}

/// The same of one that cannot be refused any more, or must not stop others: where its variables cannot be decrypted it is given
/// without them, and the log says so.
pub(crate) fn show_anyway(keyring: &Keyring, session: Session) -> Session {
    if !session.options.environment.contains_key(SEALED) {
        return session;
    }
    let mut bare = session.clone();
    show(keyring, session).unwrap_or_else(|error| {
        tracing::error!(session = %bare.id, %error, "a session goes on without its variables");
        bare.options.environment.clear();
        bare
    })
}

/// The same of many.
pub(crate) fn show_all(keyring: &Keyring, sessions: Vec<Session>) -> Vec<Session> {
    sessions.into_iter().map(|session| show_anyway(keyring, session)).collect()
}

/// Leaves the variables out: listings show none.
pub(crate) fn leave_out(sessions: &mut [Session]) {
    for session in sessions {
        session.options.environment.clear();
    }
}
