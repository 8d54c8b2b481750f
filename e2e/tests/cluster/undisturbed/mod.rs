//! Journeys during which no other may use the cluster. By their names they come after all that share it, whom they would hold up.

mod context;
mod faults;
mod upgrade;
