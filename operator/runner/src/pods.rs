//! Sandboxes that are pods: they dial the port of all bridges, prove which pod they are, and are served like the others after
//! that.

mod admission;
mod bridges;
mod claim;
mod decide;
mod questions;
mod room;
mod ticket;
mod token;

pub(crate) use self::{
    bridges::{now, serve_bridges},
    claim::claim,
    ticket::Tickets,
};
