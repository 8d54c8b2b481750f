//! The life of a sandbox, one room for each part of it: started and warmed, given to a session, supervised while its bridge is
//! connected or not, left by its session, closed.

mod bind;
mod close;
mod connections;
mod leave;
mod rest;
mod start;
mod supervise;

pub(crate) use self::{
    bind::{CLAIMED, WAKE_RESUMED, bind_claimed, binding},
    close::{HOME, close, remove_folder, save_and_close},
    leave::open_without_sandbox,
    rest::{rest, wake},
    start::{For, Holds, StartError, bring, connected, prepare_workspace, start, warm},
    supervise::spawn_supervisor,
};
