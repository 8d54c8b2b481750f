//! Exit codes of Ash's processes that another one reads: the operator finds a runner's in the status of its pod.
//!
//! They are those of `sysexits.h` that fit.

/// The other side does not have the shared secret (`EX_NOPERM`).
pub const SECRET_REFUSED: i32 = 77;
/// The other side speaks another version of the protocol (`EX_PROTOCOL`).
pub const INCOMPATIBLE: i32 = 76;
