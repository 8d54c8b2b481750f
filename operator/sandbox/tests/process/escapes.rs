//! What a hostile program inside tries: each fails.

use std::fmt::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use ash_sandbox::ReadOnlyBind;

use crate::support::{Place, processes_with, until};

/// A system call from inside; prints `errno N` or `allowed`.
fn call(number: libc::c_long, arguments: &[i64]) -> String {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    format!(
        "perl -e 'my ($n, @a) = map {{ $_ + 0 }} @ARGV; my $r = syscall($n, @a); print $r < 0 ? \"errno \" . ($! + 0) : \"allowed\", \"\\n\"' {number} {}\n",
        arguments.join(" ")
    )
}

#[tokio::test]
async fn system_calls_that_reach_out_are_refused() {
    let place = Place::new().await;
    let new_user = i64::from(libc::CLONE_NEWUSER);
    let attempts: &[(&str, libc::c_long, &[i64], i32)] = &[
        ("ptrace", libc::SYS_ptrace, &[16, 1, 0, 0], libc::EPERM),
        ("process_vm_readv", libc::SYS_process_vm_readv, &[1, 0, 0, 0, 0, 0], libc::EPERM),
        ("mount", libc::SYS_mount, &[0, 0, 0, 0, 0], libc::EPERM),
        ("umount2", libc::SYS_umount2, &[0, 0], libc::EPERM),
        ("open_tree", libc::SYS_open_tree, &[0, 0, 0], libc::EPERM),
        ("fsopen", libc::SYS_fsopen, &[0, 0], libc::EPERM),
        ("move_mount", libc::SYS_move_mount, &[0, 0, 0, 0, 0], libc::EPERM),
        ("pivot_root", libc::SYS_pivot_root, &[0, 0], libc::EPERM),
        ("unshare", libc::SYS_unshare, &[new_user], libc::EPERM),
        ("setns", libc::SYS_setns, &[0, 0], libc::EPERM),
        ("clone", libc::SYS_clone, &[new_user | 0x11, 0, 0, 0, 0], libc::EPERM),
        ("clone3", libc::SYS_clone3, &[0, 0], libc::ENOSYS),
        ("bpf", libc::SYS_bpf, &[0, 0, 0], libc::EPERM),
        ("perf_event_open", libc::SYS_perf_event_open, &[0, 0, 0, 0, 0], libc::EPERM),
        ("userfaultfd", libc::SYS_userfaultfd, &[0], libc::EPERM),
        ("keyctl", libc::SYS_keyctl, &[0, 0], libc::EPERM),
        ("add_key", libc::SYS_add_key, &[0, 0, 0, 0, 0], libc::EPERM),
        ("io_uring_setup", libc::SYS_io_uring_setup, &[1, 0], libc::EPERM),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, &[0, 0, 0], libc::EPERM),
        ("kexec_load", libc::SYS_kexec_load, &[0, 0, 0, 0], libc::EPERM),
        ("init_module", libc::SYS_init_module, &[0, 0, 0], libc::EPERM),
        ("kcmp", libc::SYS_kcmp, &[1, 1, 0, 0, 0], libc::EPERM),
        ("settimeofday", libc::SYS_settimeofday, &[0, 0], libc::EPERM),
        ("reboot", libc::SYS_reboot, &[0, 0, 0, 0], libc::EPERM),
        ("personality", libc::SYS_personality, &[0x0400_0000], libc::EPERM),
        ("TIOCSTI", libc::SYS_ioctl, &[0, 0x5412, 0], libc::EPERM),
        ("TIOCSTI with high bits", libc::SYS_ioctl, &[0, 0x1_0000_5412, 0], libc::EPERM),
        ("AF_VSOCK", libc::SYS_socket, &[40, 1, 0], libc::EPERM),
        ("AF_PACKET", libc::SYS_socket, &[17, 3, 0], libc::EPERM),
        ("AF_ALG", libc::SYS_socket, &[38, 5, 0], libc::EPERM),
        ("raw IPv4", libc::SYS_socket, &[2, 3, 1], libc::EPERM),
        ("raw IPv6", libc::SYS_socket, &[10, 3 | 0o2_000_000, 58], libc::EPERM),
        ("netlink audit", libc::SYS_socket, &[16, 3, 9], libc::EPERM),
        // A job of this architecture's other calling convention; on others merely a number that does not exist.
        ("x32 ptrace", 0x4000_0209, &[16, 1, 0, 0], libc::ENOSYS),
    ];
    let script: String = attempts.iter().map(|(_, number, arguments, _)| call(*number, arguments)).collect();
    let output = place.run("calls", &script).await;
    let answers: Vec<&str> = output.lines().collect();
    assert_eq!(answers.len(), attempts.len(), "{output}");
    for ((name, _, _, expected), answer) in attempts.iter().zip(answers) {
        assert_eq!(answer, format!("errno {expected}"), "{name}");
    }
}

#[tokio::test]
async fn what_programs_need_is_allowed() {
    let place = Place::new().await;
    let script = "perl -e 'socket(S,1,1,0) && socket(T,2,1,0) && socket(U,10,1,0) && socket(V,16,3,0) || die $!; print \
        \"sockets\\n\"'\n(exec bash -c 'echo bash')\n(cd /tmp && git init -q x && git -C x status --short && echo git)\n\
        perl -e 'use threads; threads->create(sub { print \"thread\\n\" })->join'\n";
    assert_eq!(place.run("needs", script).await, "sockets\nbash\ngit\nthread");
}

#[tokio::test]
async fn files_of_the_host_and_of_other_sandboxes_cannot_be_read() {
    let place = Place::new().await;
    let secret = place.top.path().join("secret");
    std::fs::write(&secret, "SECRET").unwrap();
    let other = place.start("other", "echo SECRET > /workspace/file; echo > /workspace/there; sleep 600").await;
    crate::support::until_there(&place.top.path().join("other/workspace/there")).await;
    let own = std::env::current_exe().unwrap();
    let paths = [
        secret.display().to_string(),
        place.top.path().join("other/workspace/file").display().to_string(),
        place.top.path().join("reader/sandbox.json").display().to_string(),
        own.display().to_string(),
        "/etc/shadow".to_owned(),
        "/etc/resolv.conf".to_owned(),
        "/etc/ssl/private".to_owned(),
        "/root".to_owned(),
        "/sys".to_owned(),
        "/var/lib".to_owned(),
        "/run/systemd".to_owned(),
        "/proc/1/root/root".to_owned(),
        "/proc/1/cwd/../../root".to_owned(),
    ];
    let mut script = String::new();
    for path in &paths {
        let _ = writeln!(script, "if [ -e '{path}' ]; then echo 'there: {path}'; fi; cat '{path}' 2>/dev/null");
    }
    script +=
        "for d in /proc/[0-9]*; do for f in root/root cwd/../secret mem; do head -c 10 $d/$f; done; done 2>/dev/null\n";
    script += "ls / | tr '\\n' ' '\n";
    let output = place.run("reader", &script).await;
    assert!(!output.contains("there:") && !output.contains("SECRET"), "{output}");
    let allowed = [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "opt",
        "proc",
        "run",
        "sbin",
        "tmp",
        "usr",
        "var",
        "workspace",
    ];
    assert!(output.split_ascii_whitespace().all(|name| allowed.contains(&name)), "{output}");
    other.kill().await.unwrap();
}

#[tokio::test]
async fn processes_of_the_host_and_of_other_sandboxes_are_out_of_sight() {
    let place = Place::new().await;
    let marker = format!("ash-other-{}", std::process::id());
    let other = place.start("other", &format!("exec perl -e 'sleep 600' {marker}")).await;
    until("the other one runs", || async { processes_with(&marker).len() >= 3 }).await;
    let own = std::process::id();
    let script = format!(
        "ls /proc | grep -c '^[0-9]'; ls -d /proc/{own} 2>/dev/null; kill -0 {own} 2>/dev/null && echo reached; \
         cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    );
    let output = place.run("looker", &script).await;
    let count: u32 = output.lines().next().unwrap().parse().unwrap();
    assert!(count <= 5, "bubblewrap, the shell and what it has just started: {output}");
    assert!(!output.contains("\nreached") && !output.contains(&format!("\n/proc/{own}")), "{output}");
    assert!(!output.contains(&marker), "{output}");
    let path = place.top.path().display().to_string();
    assert!(!output.contains(&path), "arguments name no path of the host: {output}");
    other.kill().await.unwrap();
}

#[tokio::test]
async fn no_network_leads_out() {
    let place = Place::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = format!("ash-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
    let ip = |address: &str, port: u16| {
        let bytes = address.replace('.', ",");
        format!(
            "perl -e 'socket(S,2,1,0) or die; print connect(S, pack(\"S n C4 x8\",2,{port},{bytes})) ? \"REACHED\" : $!+0, \
             \"\\n\"'\n"
        )
    };
    let script = ip("127.0.0.1", port)
        + &ip("169.254.169.254", 80)
        + &ip("10.0.0.1", 80)
        + &ip("192.0.2.1", 443)
        + &format!(
            "perl -e 'socket(S,1,1,0) or die; print connect(S, pack(\"S a*\",1,\"\\0{name}\")) ? \"REACHED\" : $!+0, \"\\n\"'\n"
        )
        + "perl -e 'socket(S,2,2,0) or die; print send(S,\"x\",0,pack(\"S n C4 x8\",2,53,169,254,169,254)) ? \"REACHED\" : \
           $!+0, \"\\n\"'\n";
    let output = place.run("network", &script).await;
    let (refused, unreachable) = (libc::ECONNREFUSED.to_string(), libc::ENETUNREACH.to_string());
    let expected = [&refused, &unreachable, &unreachable, &unreachable, &refused, &unreachable];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn the_kernel_reports_no_privileges() {
    let place = Place::new().await;
    let output = place
        .run(
            "privileges",
            "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; su root -c id 2>&1; \
        echo 1 > /proc/sys/kernel/core_pattern; echo b > /proc/sysrq-trigger; echo escaped > /proc/sys/kernel/hostname",
        )
        .await;
    for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(output.contains(line), "{line} in {output}");
    }
    assert!(!output.contains("uid=0"), "{output}");
}

/// A 64-bit program can make 32-bit system calls, which have other numbers: none may slip past the filter.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn a_32_bit_system_call_kills_its_process() {
    let place = Place::new().await;
    let mut spec = place.spec("32-bit", "/opt/ash/test --exact escapes::inside_32_bit --ignored --nocapture; echo $?");
    spec.read_only_binds =
        vec![ReadOnlyBind { host: std::env::current_exe().unwrap(), inside: "/opt/ash/test".into() }];
    let output = place.run_spec(spec).await;
    assert!(output.ends_with(&(128 + libc::SIGSYS).to_string()), "{output}");
}

/// What runs inside for the test above.
#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "started by another test, inside a sandbox"]
#[allow(unsafe_code)] // The instruction is what is tried.
fn inside_32_bit() {
    let mut number = 20_i64; // getpid
    // SAFETY: asks for the process id, through the 32-bit entry.
    unsafe { std::arch::asm!("int 0x80", inout("rax") number) };
    println!("the 32-bit call answered {number}");
}
