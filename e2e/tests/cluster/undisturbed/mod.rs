//! Journeys during which no other may use the cluster. `make test` runs them on a cluster of their own, beside everything else.

mod context;
mod faults;
mod upgrade;
