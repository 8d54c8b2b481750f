//! The only way out of a sandbox: what a hostile agent reaches over the network in each mode, directly and through the gateway.

#![allow(clippy::print_stdout, reason = "what a hostile agent was told is shown where a test fails")]

mod hostile;

use std::fmt::Write as _;

use ash_client::Session;
use ash_e2e::{
    harness::TestApp,
    model::{RecordedRequest, RequestKind},
};
use hostile::{Attempts, Trap, assert_answers, bash, modes, perl, print_protections, session_with};
use serde_json::json;

/// Functions of scripts that speak to the gateway: `tunnel TARGET [USER:TOKEN]` asks for a CONNECT, `ask METHOD PATH [TOKEN]`
/// for anything else. Both print what they asked for and the status line of the answer.
const GATEWAY: &str = r#"
proxy=${HTTPS_PROXY#http://}; credentials=${proxy%@*}; port=${proxy##*:}
tunnel() {
    local status rest=
    exec 3<>"/dev/tcp/127.0.0.1/$port" || { echo "$1 -> no gateway"; return; }
    printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n' \
        "$1" "$1" "$(printf %s "${2-$credentials}" | base64 -w0)" >&3
    IFS= read -r -t 20 status <&3
    case $status in *' 200 '*)
        while IFS= read -r -t 20 rest <&3 && [ "${rest%$'\r'}" ]; do :; done
        IFS= read -r -t 20 rest <&3;;
    esac
    echo "$1 -> ${status%$'\r'} $rest"
    exec 3<&- 3>&-
}
ask() {
    local status
    exec 3<>"/dev/tcp/127.0.0.1/$port" || { echo "$1 $2 -> no gateway"; return; }
    printf '%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}' \
        "$1" "$2" "${3-$ANTHROPIC_API_KEY}" >&3
    IFS= read -r -t 20 status <&3
    echo "$1 $2 -> ${status%$'\r'}"
    exec 3<&- 3>&-
}
"#;

/// What the refusal of a spelling says that resolvers disagree about.
const SYNTAX: &str = "four decimal numbers";

/// What the gateway answered to something, from the line that `tunnel` or `ask` printed.
fn answer<'a>(output: &'a str, asked: &str) -> &'a str {
    let start = format!("{asked} -> ");
    output
        .lines()
        .find_map(|line| line.strip_prefix(&start))
        .unwrap_or_else(|| panic!("{asked:?} was not asked for:\n{output}"))
}

async fn tunnels(app: &TestApp, session: &Session, targets: &[String]) -> String {
    let mut script = GATEWAY.to_owned();
    for target in targets {
        let _ = writeln!(script, "tunnel '{target}'");
    }
    bash(app, session, &script).await
}

/// Nothing in the sandbox's own network leads out: host loopback, metadata, private and public networks, other sandboxes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reached_directly() {
    let app = TestApp::start().await;
    print_protections(&app);
    let trap = Trap::on("127.0.0.1").expect("loopback");
    let trap_v6 = Trap::on("::1");
    let connect = |host: &str, port: u16| format!("bash -c 'exec 3<>/dev/tcp/{host}/{port}'");
    let neighbour = session_with(&app, "neighbour", &json!({ "mode": "public" })).await;
    let port = listen_inside(&app, &neighbour).await;
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        let mut attempts = Attempts::default();
        attempts.control("own gateway", r"bash -c 'exec 3<>/dev/tcp/127.0.0.1/${HTTPS_PROXY##*:}'");
        attempts.hostile("host loopback", &connect("127.0.0.1", trap.port()));
        attempts.hostile("host loopback by name", &connect("localhost", trap.port()));
        attempts.hostile("host loopback, unspecified", &connect("0.0.0.0", trap.port()));
        attempts.hostile("host loopback, IPv6", &connect("::1", trap_v6.as_ref().map_or(1, Trap::port)));
        attempts.hostile("host loopback, mapped", &connect("::ffff:127.0.0.1", trap.port()));
        attempts.hostile("server", &connect("127.0.0.1", app.address().port()));
        attempts.hostile("model", &connect("127.0.0.1", app.model.address().port()));
        attempts.hostile("port of another sandbox", &connect("127.0.0.1", port));
        let unreachable = ["169.254.169.254", "10.0.0.1", "172.17.0.1", "192.168.0.1", "192.0.2.1", "fd00:ec2::254"];
        for address in unreachable {
            attempts.hostile(address, &connect(address, 80));
        }
        let datagram = perl(
            r#"socket(S,2,2,0) or die; send(S,"x",0,pack("S n C4 x8",2,53,169,254,169,254)) or die "$!\n"; print "sent""#,
        );
        attempts.hostile("datagram to metadata", &datagram);
        let output = attempts.run(&app, &session).await;
        for (name, outcome) in hostile::outcomes(&output) {
            if unreachable.contains(&name.as_str()) || name == "datagram to metadata" {
                assert!(outcome.contains("unreachable"), "{mode}: there has to be no route to {name}: {outcome}");
            }
        }
        println!("{mode}:\n{output}");
        assert_answers(&app, &neighbour).await;
    }
    assert_eq!((trap.reached(), trap_v6.map_or(0, |trap| trap.reached())), (0, 0));
}

/// Has a process of a session's sandbox listen, shows that it is reached there, and gives its port.
async fn listen_inside(app: &TestApp, session: &Session) -> u16 {
    let listen = perl(
        r#"$| = 1; socket(S,2,1,0) or die; bind(S,pack("S n C4 x8",2,0,127,0,0,1)) or die; listen(S,9) or die;
        my ($f,$p) = unpack("S n", getsockname(S)); print "$p\n"; while (accept(C,S)) { close(C) }"#,
    );
    let script = format!(
        "setsid {listen} >port 2>/dev/null </dev/null & while [ ! -s port ]; do sleep 0.01; done; read port <port\n\
         exec 3<>/dev/tcp/127.0.0.1/$port && echo $port"
    );
    let output = bash(app, session, &script).await;
    output.trim().parse().unwrap_or_else(|_| panic!("the neighbour does not listen: {output}"))
}

/// The CONNECT proxy refuses, before it connects anywhere, everything that is not public, in every spelling, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_refuses_what_is_not_public() {
    let app = TestApp::start().await;
    print_protections(&app);
    let trap = Trap::on("127.0.0.1").expect("loopback");
    let trap_v6 = Trap::on("::1");
    let (port, port_v6) = (trap.port(), trap_v6.as_ref().map_or(1, Trap::port));
    // Each with a word of the reason where the mode admits the host.
    let targets: Vec<(String, &str)> = vec![
        (format!("127.0.0.1:{port}"), "loopback"),
        (format!("127.0.0.2:{port}"), "loopback"),
        (format!("localhost:{port}"), "loopback"),
        (format!("LOCALHOST.:{port}"), "loopback"),
        (format!("127.1:{port}"), SYNTAX),
        (format!("2130706433:{port}"), SYNTAX),
        (format!("0x7f000001:{port}"), SYNTAX),
        (format!("0177.0.0.1:{port}"), SYNTAX),
        (format!("0.0.0.0:{port}"), "unspecified"),
        (format!("[::1]:{port_v6}"), "loopback"),
        (format!("[::]:{port_v6}"), "unspecified"),
        (format!("[::ffff:127.0.0.1]:{port}"), "loopback"),
        (format!("[64:ff9b::7f00:1]:{port}"), "loopback"),
        (app.address().to_string(), "loopback"),
        (app.model.address().to_string(), "loopback"),
        ("169.254.169.254:80".to_owned(), "metadata"),
        ("[::ffff:169.254.169.254]:80".to_owned(), "metadata"),
        ("[fd00:ec2::254]:80".to_owned(), "metadata"),
        ("168.63.129.16:80".to_owned(), "metadata"),
        ("10.0.0.1:443".to_owned(), "private"),
        ("172.17.0.1:443".to_owned(), "private"),
        ("192.168.0.1:443".to_owned(), "private"),
        ("100.64.0.1:443".to_owned(), "carrier-grade"),
        ("[fe80::1]:80".to_owned(), "link-local"),
    ];
    let all: Vec<String> = targets.iter().map(|(target, _)| target.clone()).collect();
    // The agent's own list admits what the operator does not: it does not help.
    let listed: Vec<String> = targets
        .iter()
        .filter(|(target, reason)| *reason != SYNTAX && target.starts_with(|first: char| !"[L".contains(first)))
        .map(|(target, _)| target.clone())
        .collect();
    let neighbour = session_with(&app, "neighbour", &json!({ "mode": "public" })).await;
    for (mode, network) in modes(&listed) {
        let session = session_with(&app, mode, &network).await;
        let output = tunnels(&app, &session, &all).await;
        for (target, reason) in &targets {
            let answer = answer(&output, target);
            assert!(answer.starts_with("HTTP/1.1 403 Ash egress: "), "{mode} {target}: {answer}");
            // A spelling of IPv6 that leads to a listed IPv4 address is that address.
            let is_listed = !target.starts_with('[') || target.contains("ffff:") || target.contains("ff9b:");
            let expected = match mode {
                _ if *reason == SYNTAX => SYNTAX,
                "model" => "model only",
                "allowlist" if !is_listed => "allowlist",
                _ => reason,
            };
            assert!(answer.contains(expected), "{mode} {target}: {answer:?} does not say {expected:?}");
        }
        println!("{mode}:\n{output}");
        assert_answers(&app, &neighbour).await;
    }
    assert_eq!((trap.reached(), trap_v6.map_or(0, |trap| trap.reached())), (0, 0), "the gateway connected");
}

/// A tool of the sandbox shows the agent why a host was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_sees_why_a_host_was_refused() {
    let app = TestApp::start().await;
    let session = session_with(&app, "curious", &json!({ "mode": "allowlist", "hosts": ["example.com"] })).await;
    let script = "if [ -x /usr/bin/curl ]; then curl -sSv --max-time 30 https://10.0.0.1/ 2>&1; else echo no-curl; fi";
    let output = bash(&app, &session, script).await;
    if output.contains("no-curl") {
        println!("SKIPPED: there is no curl on this machine; the test above sees the same answer without it");
        return;
    }
    assert!(output.contains("403"), "{output}");
    assert!(output.contains("10.0.0.1:443: host and port are not on this agent's egress allowlist"), "{output}");
}

/// What the operator names is reached where the agent's mode admits it, through a listener that was handed across the network
/// namespaces; in mode `model` never.
#[tokio::test(flavor = "multi_thread")]
async fn an_exception_of_the_operator_is_reached() {
    let trap = Trap::on("127.0.0.1").expect("loopback");
    let target = format!("127.0.0.1:{}", trap.port());
    let app = TestApp::builder().argument(format!("--egress-allow={target}")).start().await;
    let targets = [target.clone(), format!("127.0.0.1:{}", app.address().port()), format!("localhost:{}", trap.port())];
    let mut expected = 0;
    let with_unlisted = [("unlisted", json!({ "mode": "allowlist", "hosts": ["example.com"] }))];
    for (mode, network) in modes(&targets).into_iter().chain(with_unlisted) {
        let session = session_with(&app, mode, &network).await;
        let output = tunnels(&app, &session, &targets).await;
        let reached = answer(&output, &targets[0]);
        match mode {
            "allowlist" | "public" => {
                expected += 1;
                assert!(reached.starts_with("HTTP/1.1 200") && reached.contains(Trap::HELLO), "{mode}: {output}");
            }
            "model" => assert!(reached.contains("403 ") && reached.contains("model only"), "{output}"),
            _ => assert!(reached.contains("403 ") && reached.contains("allowlist"), "{output}"),
        }
        for other in &targets[1..] {
            assert!(answer(&output, other).starts_with("HTTP/1.1 403 "), "{mode}: only what is named: {output}");
        }
        println!("{mode}:\n{output}");
        assert_eq!(trap.reached(), expected, "{mode}");
    }
}

/// The gateway answers a sandbox's own token only, passes on model calls only, and is no proxy for anything but CONNECT.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_paths_are_held_to() {
    let app = TestApp::start().await;
    let neighbour = session_with(&app, "neighbour", &json!({ "mode": "public" })).await;
    let others = bash(&app, &neighbour, "echo $ANTHROPIC_API_KEY").await;
    assert!(others.len() > 20, "{others}");
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        app.model.clear();
        let forged = "${ANTHROPIC_API_KEY%????}AAAA";
        let mut script = format!("{GATEWAY}\n[ '{others}' != \"$ANTHROPIC_API_KEY\" ] && echo tokens differ\n");
        for (name, token) in [("none", "''"), ("wrong", "wrong"), ("forged", forged), ("others", &others)] {
            let _ = writeln!(script, "echo \"{name} $(ask POST /v1/messages {token})\"");
            let _ = writeln!(script, "echo \"{name} $(tunnel 10.0.0.1:443 sandbox:{token})\"");
        }
        let refused = [
            "GET /v1/files",
            "POST /v1/messages/batches",
            "GET /v1/organizations/me",
            "GET /v1/messages",
            "POST /v1/messages/../files",
            "POST /v1/messages/%2e%2e/files",
            "GET //v1/models",
            "GET /v1/models/../files",
            "GET /api/sessions",
        ];
        for asked in refused {
            let _ = writeln!(script, "ask {asked}");
        }
        let _ = writeln!(script, "ask GET http://10.0.0.1/");
        let output = bash(&app, &session, &script).await;
        assert!(output.contains("tokens differ"), "{output}");
        for name in ["none", "wrong", "forged", "others"] {
            let asked = answer(&output, &format!("{name} POST /v1/messages"));
            assert!(asked.starts_with("HTTP/1.1 401 "), "{mode}, {name}: {asked}");
            let tunnel = answer(&output, &format!("{name} 10.0.0.1:443"));
            assert!(tunnel.starts_with("HTTP/1.1 407 ") && tunnel.contains("token"), "{mode}, {name}: {tunnel}");
        }
        for asked in refused {
            assert!(answer(&output, asked).starts_with("HTTP/1.1 403 "), "{mode}, {asked}: {output}");
        }
        assert!(answer(&output, "GET http://10.0.0.1/").starts_with("HTTP/1.1 405 "), "{mode}: {output}");
        let strange: Vec<String> =
            app.model.all_requests().into_iter().filter(is_strange).map(|request| request.path).collect();
        assert!(strange.is_empty(), "{mode}: the model was asked for {strange:?}");
        println!("{mode}:\n{output}");
        assert_answers(&app, &neighbour).await;
    }
}

/// Whether a request is none that Claude Code makes by itself.
fn is_strange(request: &RecordedRequest) -> bool {
    request.kind == RequestKind::Other
}
