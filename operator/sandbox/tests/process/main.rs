//! Sandboxes that really run, with bubblewrap: what they are, what they cannot do, and how they end.
//!
//! Needs bubblewrap, a POSIX shell and Perl, which every Debian and Ubuntu has. A test that cannot run fails.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod escapes;
mod lifecycle;
mod limits;
mod ordinary_user;
mod support;
