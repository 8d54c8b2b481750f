//! The seccomp filter: which system calls the programs of a sandbox may not make.
//!
//! Everything that is not named is allowed: arbitrary build tools, compilers, `git`, Python and Claude Code must work.
//! Refused (`EPERM`) is what reaches into other processes or the kernel: tracing, mounts, namespaces, keys, loading of
//! code into the kernel, clocks, and sockets other than Unix, IPv4, IPv6 and route netlink. `clone3`, whose flags lie
//! in memory where a filter cannot see them, and the x32 calling convention do not exist (`ENOSYS`; the C library then
//! falls back to `clone`). A system call by another architecture's convention (32-bit) kills the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::error::SandboxError;

/// Namespaces that `clone` may not make; `CLONE_NEWTIME` shares its bit with the exit signal and only `clone3` and
/// `unshare` know it.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Execution domains that change nothing about protections, as the container engines allow them: Linux, 32-bit
/// address space reports, and the query.
const HARMLESS_PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Bits of the second argument of `socket` that are the type and not a flag.
const SOCKET_TYPE_MASK: u64 = 0xf;
/// `SOCK_PACKET`, the oldest way to raw frames.
const SOCK_PACKET: u64 = 10;

/// Refused whatever their arguments, on every architecture.
const REFUSED: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Mounts, old and new.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Wide and young surfaces of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keys, which are shared by all processes of a user.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The kernel itself and the machine.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_kexec_file_load,
];

/// Refused whatever their arguments, where only this architecture has them.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib, libc::SYS_ustat];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// System calls younger than the constants of `libc`; their numbers are the same on every architecture.
/// `open_tree_attr`, 467.
const REFUSED_YOUNG: &[libc::c_long] = &[467];

/// The filter as the bytes that bubblewrap's `--seccomp` reads: an array of `struct sock_filter`.
pub(crate) fn compile() -> Result<Vec<u8>, SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Filter { what: error.to_string() };
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
    let rules = rules().map_err(|error| failed(&error))?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.unsigned_abs()), architecture)
            .map_err(|error| failed(&error))?;
    let body: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
    let mut bytes = Vec::with_capacity((body.len() + 8) * 8);
    for (code, jump_true, jump_false, constant) in absent_calls() {
        encode(&mut bytes, code, jump_true, jump_false, constant);
    }
    for instruction in &body {
        encode(&mut bytes, instruction.code, instruction.jt, instruction.jf, instruction.k);
    }
    Ok(bytes)
}

/// The start of the program: calls that do not exist here. Jumps are relative, so the compiled rules can follow as
/// they are.
fn absent_calls() -> Vec<(u16, u8, u8, u32)> {
    /// Load a word of `struct seccomp_data`.
    const LOAD: u16 = 0x20;
    /// Jump if equal, jump if greater or equal, return.
    const EQUAL: u16 = 0x15;
    const GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    /// Where `struct seccomp_data` keeps the number of the call.
    const NUMBER: u32 = 0;
    /// `SECCOMP_RET_ERRNO`.
    const ERRNO: u32 = 0x0005_0000;
    /// First number of the x32 convention; no 64-bit Linux has calls there that a filter should let pass.
    const X32: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let absent = ERRNO | libc::ENOSYS.unsigned_abs();
    vec![(LOAD, 0, 0, NUMBER), (GREATER_OR_EQUAL, 1, 0, X32), (EQUAL, 0, 1, clone3), (RETURN, 0, 0, absent)]
}

fn encode(bytes: &mut Vec<u8>, code: u16, jump_true: u8, jump_false: u8, constant: u32) {
    bytes.extend_from_slice(&code.to_ne_bytes());
    bytes.extend_from_slice(&[jump_true, jump_false]);
    bytes.extend_from_slice(&constant.to_ne_bytes());
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut rules = BTreeMap::new();
    for &call in REFUSED.iter().chain(REFUSED_HERE).chain(REFUSED_YOUNG) {
        rules.insert(call, Vec::new());
    }
    let word = |argument, operator, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);

    let mut namespaces = Vec::new();
    for flag in NAMESPACE_FLAGS {
        let flag = u64::from(flag.unsigned_abs());
        namespaces.push(SeccompRule::new(vec![word(0, MaskedEq(flag), flag)?])?);
    }
    rules.insert(libc::SYS_clone, namespaces);

    let [unix, inet, inet6, netlink] =
        [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].map(|family| u64::from(family.unsigned_abs()));
    let route = u64::from(libc::NETLINK_ROUTE.unsigned_abs());
    let raw = u64::from(libc::SOCK_RAW.unsigned_abs());
    let other_family =
        SeccompRule::new(vec![word(0, Ne, unix)?, word(0, Ne, inet)?, word(0, Ne, inet6)?, word(0, Ne, netlink)?])?;
    let sockets = vec![
        other_family.clone(),
        SeccompRule::new(vec![word(0, Ne, netlink)?, word(1, MaskedEq(SOCKET_TYPE_MASK), raw)?])?,
        SeccompRule::new(vec![word(0, Ne, netlink)?, word(1, MaskedEq(SOCKET_TYPE_MASK), SOCK_PACKET)?])?,
        SeccompRule::new(vec![word(0, Eq, netlink)?, word(2, Ne, route)?])?,
    ];
    rules.insert(libc::SYS_socket, sockets);
    rules.insert(libc::SYS_socketpair, vec![other_family]);

    // Typing into a terminal, and the console's own way to do it.
    let typing = [libc::TIOCSTI, libc::TIOCLINUX].map(u64::from);
    rules.insert(
        libc::SYS_ioctl,
        vec![SeccompRule::new(vec![word(1, Eq, typing[0])?])?, SeccompRule::new(vec![word(1, Eq, typing[1])?])?],
    );

    let mut personality = Vec::new();
    for harmless in HARMLESS_PERSONALITIES {
        personality.push(word(0, Ne, harmless)?);
    }
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(personality)?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_compiles_to_whole_instructions_within_the_kernels_bound() {
        let bytes = compile().unwrap();
        assert_eq!(bytes.len() % 8, 0);
        assert!(bytes.len() / 8 < 4096, "BPF_MAXINSNS");
    }

    #[test]
    fn no_refused_call_is_refused_twice_with_other_arguments() {
        let rules = rules().unwrap();
        assert_eq!(rules.len(), REFUSED.len() + REFUSED_HERE.len() + REFUSED_YOUNG.len() + 5);
    }
}
