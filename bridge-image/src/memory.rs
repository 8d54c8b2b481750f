//! Gives freed memory back: a bridge is idle most of its life, and there are thousands of them.

/// Gives the free pages of the heap back to the system. Takes tens of microseconds: once per turn, not per message.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions and may be called at any time.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}
