//! The life of a sandbox, one room for each part of it: started and warmed, given to a session, supervised while its bridge is
//! connected or not, left by its session, closed.

mod bind;
mod close;
mod connections;
mod leave;
mod start;
mod supervise;

pub(crate) use self::{
    bind::{bind, binding},
    close::{HOME, close, remove_folder},
    leave::open_without_sandbox,
    start::{For, StartError, start},
    supervise::spawn_supervisor,
};
