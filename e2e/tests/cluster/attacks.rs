//! What a hostile agent tries from its pod, through Claude Code's own Bash tool: the cluster's network, other pods, the gateway and
//! the port of bridges with what is not its own, secrets, files. What fails for it works for somebody else in the same journey.

use std::{collections::BTreeMap, fmt::Write as _, net::TcpStream, time::Duration};

use ash_e2e::{
    cluster::{Cluster, MODEL_SERVICE, SYSTEM_NAMESPACE},
    harness::MODEL_KEY,
};
use serde_json::{Value, json};

use crate::{
    pods::{SERVER, pod},
    tenant::Tenant,
};

/// `try NAME COMMAND...` prints `NAME=DONE ...` or `NAME=failed ...`, whenever it is over; `wait` waits for all of them.
///
/// `gateway TOKEN` succeeds where the model answers (the scripted one has no list of models), `proxy TARGET CREDENTIALS` where a
/// tunnel is opened; `bridge LINE` where the port of
/// bridges accepts what the line proves. `find_word` and `find_file` say where a word is, in processes and files; it comes
/// backwards, so that looking for it does not bring it there.
const FUNCTIONS: &str = r#"
cat >/tmp/functions <<'END'
address=${HTTPS_PROXY##*@}; host=${address%:*}; credentials=${HTTPS_PROXY#http://}; credentials=${credentials%@*}
ask() { exec 3<>"/dev/tcp/$host/$1" || return; printf "$2" >&3; IFS= read -r -t 5 said <&3; echo "${said%$'\r'}"; }
gateway() {
    ask 4320 "GET /v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: $1\r\nConnection: close\r\n\r\n"
    [[ $said == *' 404 '* ]]
}
proxy() {
    ask 4320 "CONNECT $1 HTTP/1.1\r\nHost: $1\r\nProxy-Authorization: Basic $(printf %s "$2" | base64 -w0)\r\n\r\n"
    [[ $said == *' 200 '* ]]
}
bridge() { ask 4310 "$1\n"; [[ $said == *'"ok":true'* ]]; }
reach() { exec 3<>"/dev/tcp/$1/$2"; }
find_word() {
    local found=
    for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do
        perl -e 'local $/; open F, "<", $ARGV[0] or exit 1; exit(index(<F>, scalar reverse $ARGV[1]) < 0)' "$file" "$1" && found=$file
    done 2>/dev/null
    echo "$found"; [ "$found" ]
}
find_file() {
    local found=$(perl -e 'print scalar reverse shift' "$1" | grep -rlIsF -f - /workspace /home/agent /tmp /etc /run /var /opt)
    echo "$found"; [ "$found" ]
}
END
try() {
    local name=$1 output how; shift
    if output=$(timeout 15 bash -c '. /tmp/functions; "$@"' bash "$@" 2>&1 </dev/null); then how=DONE; else how=failed; fi
    output=${output//[$'\n\r\t=']/ }
    echo "$name=$how ${output:0:200}"
}
"#;

/// Attempts of one script: what has to fail in a sandbox, and what has to work there.
#[derive(Default)]
struct Attempts {
    script: String,
    expected: BTreeMap<String, bool>,
}

impl Attempts {
    /// `command` is a simple command of the shell; the name has no quote and no `=`.
    fn hostile(&mut self, name: &str, command: &str) {
        assert!(!name.contains(['\'', '=']), "{name}");
        let _ = writeln!(self.script, "try '{name}' {command} &");
        assert!(self.expected.insert(name.to_owned(), false).is_none(), "{name} twice");
    }

    /// The same way, where it is permitted.
    fn control(&mut self, name: &str, command: &str) {
        self.hostile(name, command);
        self.expected.insert(name.to_owned(), true);
    }

    /// The address of something in the network that nobody in a sandbox may connect to.
    fn reach(&mut self, name: &str, host: &str, port: u16) {
        self.hostile(name, &format!("timeout 3 bash -c 'exec 3<>/dev/tcp/$0/$1' {host} {port}"));
    }

    fn script(&self) -> String {
        format!("{FUNCTIONS}{}wait", self.script)
    }

    /// Asserts that each ran and ended as expected, or all of them in the other way.
    fn assert(&self, output: &str) {
        let outcomes = outcomes(output);
        let wrong: Vec<String> = self
            .expected
            .iter()
            .filter_map(|(name, works)| match outcomes.get(name.as_str()) {
                Some(outcome) if outcome.starts_with("DONE") == *works => None,
                outcome => Some(format!("{name:?} has to {}: {outcome:?}", if *works { "work" } else { "fail" })),
            })
            .collect();
        assert!(wrong.is_empty(), "{}\n\n{output}", wrong.join("\n"));
    }
}

/// What `try` printed, by name.
fn outcomes(output: &str) -> BTreeMap<&str, &str> {
    output.lines().filter_map(|line| line.split_once('=')).collect()
}

/// Runs a script in the session's sandbox; what it printed.
fn bash(tenant: &Tenant<'_>, session: &str, script: &str) -> String {
    tenant.answer(session, &format!("[[tool: Bash {}]] [[result]]", json!({ "command": script })))
}

/// The pod of a session.
fn pod_of(tenant: &Tenant<'_>, session: &str) -> Value {
    let name = tenant.cluster.eventually("the session says which pod it is in", |_| {
        tenant.resource(session)?["status"]["pod"].as_str().map(str::to_owned)
    });
    tenant.json(&["get", "pod", &name])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// What `kubectl get` has at a path.
fn at(cluster: &Cluster, object: &str, namespace: &str, path: &str) -> String {
    cluster.done(&["get", object, "-n", namespace, "-o", &format!("jsonpath={path}")])
}

/// A pod of the runner, of the API: its address.
fn pod_address(cluster: &Cluster, component: &str, node: Option<&str>) -> String {
    let pods = cluster.json(&[
        "get",
        "pods",
        "-n",
        SYSTEM_NAMESPACE,
        "-l",
        &format!("app.kubernetes.io/component={component}"),
    ]);
    let pods = pods["items"].as_array().unwrap();
    let pod = pods.iter().find(|pod| node.is_none_or(|node| pod["spec"]["nodeName"] == node));
    text(&pod.expect("such a pod")["status"]["podIP"]).to_owned()
}

/// Two sessions of one agent that may reach every public address: one is hostile, the other one is a neighbour.
fn two_sessions(tenant: &Tenant<'_>, agent: &str) -> [String; 2] {
    tenant.agent(agent, &json!({ "sandbox": { "network": { "mode": "public" } }, "warm": { "min": 2, "max": 2 } }));
    tenant.wait(&format!("agent/{agent}"), "condition=PoolReady");
    let sessions = [tenant.create(agent).id, tenant.create(agent).id];
    // Nobody needs more of them.
    tenant.apply(&crate::tenant::agent(
        agent,
        &json!({ "sandbox": { "network": { "mode": "public" } }, "warm": { "min": 0, "max": 0 } }),
    ));
    sessions
}

/// Each of these is reached by a pod beside that no policy confines, or by the machine.
#[test]
fn a_hostile_agent_reaches_nothing_in_the_network() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let [hostile, neighbour] = two_sessions(&tenant, "prowler");
    tenant.apply(&pod("bystander", &["sleep", "infinity"]));
    tenant.apply(&pod("server", &["perl", "-e", SERVER]));
    // The neighbour's agent listens: nobody can call it.
    let listen = "setsid perl /dev/stdin >/dev/null 2>&1 <<'END' &\n";
    let ready = "until (exec 3<>/dev/tcp/127.0.0.1/8080) 2>/dev/null; do sleep 0.1; done; echo listens";
    assert_eq!(bash(&tenant, &neighbour, &format!("{listen}{SERVER}\nEND\n{ready}")), "listens");
    tenant.wait("pod/bystander", "condition=Ready");
    tenant.wait("pod/server", "condition=Ready");

    let neighbours = pod_of(&tenant, &neighbour);
    let neighbours = text(&neighbours["status"]["podIP"]);
    let node = cluster.json(&["get", "node", "node1"]);
    let addresses = node["status"]["addresses"].as_array().unwrap();
    let node = text(&addresses.iter().find(|one| one["type"] == "InternalIP").unwrap()["address"]);
    let service =
        |name: &str, namespace: &str| at(&cluster, &format!("service/{name}"), namespace, "{.spec.clusterIP}");
    let port = |name: &str| {
        at(&cluster, &format!("service/{name}"), SYSTEM_NAMESPACE, "{.spec.ports[0].port}").parse().unwrap()
    };
    let runner = pod_address(&cluster, "runner", Some("node1"));
    let coordinator = pod_address(&cluster, "api", None);

    // What a pod without a policy reaches.
    let mut open = Attempts::default();
    open.reach("the API server", &service("kubernetes", "default"), 443);
    open.reach("the API server at its node", node, 6443);
    open.reach("the kubelet", node, 10250);
    open.reach("DNS", &service("kube-dns", "kube-system"), 53);
    open.reach("another pod", &at(&cluster, "pod/server", tenant.name, "{.status.podIP}"), 8080);
    open.reach("Postgres", &service("postgres", SYSTEM_NAMESPACE), port("postgres"));
    open.reach("the model", &service(MODEL_SERVICE, SYSTEM_NAMESPACE), port(MODEL_SERVICE));
    open.reach("the model at its node", node, port(MODEL_SERVICE));
    open.reach("the API of Ash", &service("ash", SYSTEM_NAMESPACE), 80);
    open.reach("metrics of the runner", &runner, 4301);
    open.hostile("a name", "timeout 3 getent hosts kubernetes.default.svc");
    // What nobody but the parts of Ash reaches.
    let mut closed = Attempts::default();
    closed.reach("another sandbox", neighbours, 8080);
    closed.reach("the port of the runner for coordinators", &runner, 4300);
    closed.reach("the fleet port", &service("ash-fleet", SYSTEM_NAMESPACE), 4200);
    closed.reach("the fleet port of a coordinator", &coordinator, 4200);
    closed.reach("the metadata service", "169.254.169.254", 80);
    closed.reach("the runner through its Service", &service("ash-runner-default", SYSTEM_NAMESPACE), 4300);
    let gateway = service("ash-runner-default", SYSTEM_NAMESPACE);

    // In a sandbox all fail, and the gateway is reached in the same way.
    for (attempts, of) in [(&open, "open"), (&closed, "closed")] {
        let mut all = Attempts { script: attempts.script.clone(), expected: attempts.expected.clone() };
        all.reach("the gateway", &gateway, 4320);
        all.reach("the port of bridges", &gateway, 4310);
        for allowed in ["the gateway", "the port of bridges"] {
            all.expected.insert(allowed.to_owned(), true);
        }
        let output = bash(&tenant, &hostile, &all.script());
        eprintln!("{of}:\n{output}");
        all.assert(&output);
    }
    // The bystander reaches what is open.
    open.expected.values_mut().for_each(|works| *works = true);
    let beside = |script: &str| tenant.done(&["exec", "bystander", "--", "bash", "-c", script]);
    open.assert(&beside(&open.script()));
    closed.assert(&beside(&closed.script()));
    // The neighbour listens for itself, the runner for the kubelet of its node.
    let mut own = Attempts::default();
    own.reach("its own address", neighbours, 8080);
    own.expected.values_mut().for_each(|works| *works = true);
    own.assert(&bash(&tenant, &neighbour, &own.script()));
    for port in [4300, 4301] {
        let address = format!("{runner}:{port}").parse().unwrap();
        let reached = cluster.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok());
        assert!(reached || node != cluster.host_address().to_string(), "nobody listens at {port}");
    }

    // Through the proxy, which the agent may use for every public address.
    let mut proxied = Attempts::default();
    let targets = [
        "169.254.169.254:80".to_owned(),
        "metadata.google.internal:80".to_owned(),
        format!("{}:443", service("kubernetes", "default")),
        "kubernetes.default.svc:443".to_owned(),
        format!("{node}:10250"),
        format!("{node}:6443"),
        format!("{neighbours}:8080"),
        format!("{runner}:4300"),
        format!("{runner}:4301"),
        "127.0.0.1:4301".to_owned(),
        "localhost:4300".to_owned(),
        "[::1]:4301".to_owned(),
        format!("[::ffff:{runner}]:4301"),
        format!("{coordinator}:4200"),
        format!("postgres.{SYSTEM_NAMESPACE}.svc:{}", port("postgres")),
        format!("{MODEL_SERVICE}.{SYSTEM_NAMESPACE}.svc:{}", port(MODEL_SERVICE)),
    ];
    for target in &targets {
        proxied.hostile(target, &format!(r#"proxy {target} "$(. /tmp/functions; echo $credentials)""#));
    }
    let output = bash(&tenant, &hostile, &proxied.script());
    proxied.assert(&output);
    // The proxy heard every one, knew who asks, and refused the address.
    let outcomes = outcomes(&output);
    for target in targets.iter().filter(|target| *target != "metadata.google.internal:80") {
        assert!(outcomes[target.as_str()].contains(" 403 "), "{target}: {output}");
    }
    tenant.done(&["delete", "pod", "bystander", "server", "--wait=false"]);
    assert_eq!(tenant.answer(&neighbour, "[[count]]"), "3", "the neighbour goes on");
}

/// The header, the payload and the signature of a token, with a word of the payload exchanged; its signature no longer fits.
const FORGE: &str = r#"
token=$(cat /var/run/ash/token/token); IFS=. read -r header payload signature <<<"$token"
forged() { perl -MMIME::Base64=encode_base64url,decode_base64url -e '
    my ($payload, $from, $to) = @ARGV; $_ = decode_base64url($payload); s/\Q$from/$to/g; print encode_base64url($_)' "$payload" "$1" "$2"; }
none=$(printf '{"alg":"none","typ":"JWT"}' | base64 -w0 | tr -d =)
"#;

#[test]
#[allow(clippy::too_many_lines, reason = "one agent tries them one after the other")]
fn a_hostile_agent_is_nobody_else_and_finds_no_key() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let [hostile, neighbour] = two_sessions(&tenant, "impostor");
    let before = cluster.installation().model.all_requests().len();
    assert_eq!(tenant.answer(&neighbour, "[[count]]"), "1");
    let asked = &cluster.installation().model.all_requests()[before..];
    assert!(asked.iter().any(|request| request.api_key() == Some(MODEL_KEY)), "the model was not called with the key");

    let own = text(&pod_of(&tenant, &hostile)["metadata"]["name"]).to_owned();
    let others = pod_of(&tenant, &neighbour);
    let name = text(&others["metadata"]["name"]);
    let sandbox = text(&others["metadata"]["labels"]["ash.dev/sandbox-id"]).to_owned();
    let backwards = |word: &str| word.chars().rev().collect::<String>();

    let mut attempts = Attempts::default();
    // The gateway: a token of one's own, with the neighbour's sandbox in it, and none.
    let own_token = r#""$(. /tmp/functions; echo ${credentials#*:})""#;
    attempts.control("the own token", &format!("gateway {own_token}"));
    let forge = format!(
        r#""$(. /tmp/functions; perl -MMIME::Base64=encode_base64url,decode_base64url -e 'my $t = decode_base64url(substr($ARGV[0], 8)); substr($t, 1, 16) = pack("H*", $ARGV[1]); print "ash-sbx-", encode_base64url($t)' "${{credentials#*:}}" {})""#,
        sandbox.replace('-', "")
    );
    attempts.hostile("a token with the sandbox of another", &format!("gateway {forge}"));
    attempts.hostile("a proxy with the sandbox of another", &format!(r#"proxy 1.1.1.1:443 "sandbox:"{forge}"#));
    attempts.hostile("no token", "gateway ''");
    attempts.hostile("a proxy without a token", "proxy 1.1.1.1:443 x:y");
    // The port of bridges.
    for (what, line) in [
        ("garbage", r#"{"ash":"bridge","token":"x"}"#),
        ("a ticket of nobody", r#"{"ash":"bridge","ticket":"x"}"#),
        ("a token of the gateway", r#"{"ash":"bridge","ticket":"'"$ANTHROPIC_API_KEY"'"}"#),
        ("the name of another pod", r#"{"ash":"bridge","token":"'"$header.$(forged OWN OTHER).$signature"'"}"#),
        ("the uid of another pod", r#"{"ash":"bridge","token":"'"$header.$(forged OWNUID OTHERUID).$signature"'"}"#),
        ("no signature", r#"{"ash":"bridge","token":"'"$none.$(forged OWN OTHER)."'"}"#),
    ] {
        let uid = tenant.json(&["get", "pod", &own])["metadata"]["uid"].as_str().unwrap().to_owned();
        let line = line.replace("OTHERUID", text(&others["metadata"]["uid"])).replace("OWNUID", &uid);
        let line = line.replace("OWN", &own).replace("OTHER", name);
        attempts.hostile(&format!("a bridge with {what}"), &format!("bridge '{line}'"));
    }
    // Keys and tokens.
    attempts.hostile("tokens for the API server", "ls -A /var/run/secrets/kubernetes.io");
    attempts.hostile(
        "the environment of the control plane",
        "bash -c 'env | grep -E \"DATABASE_URL|FLEET|CREDENTIAL_KEY|_SERVICE_HOST\"'",
    );
    attempts.hostile("the model key in a process", &format!("find_word {}", backwards(MODEL_KEY)));
    attempts.control("the own token in a process", &format!("find_word {}", backwards("ash-sbx-")));
    attempts.hostile("the model key in a file", &format!("find_file {}", backwards(MODEL_KEY)));
    attempts.control("the own folder in a file", &format!("find_file {}", backwards("/home/agent")));
    // Files and rights.
    for path in [
        "/x",
        "/etc/x",
        "/usr/local/bin/claude",
        "/usr/local/bin/ash-bridge",
        "/var/x",
        "/run/x",
        "/var/run/ash/token/x",
        "/opt/x",
    ] {
        attempts.hostile(&format!("write {path}"), &format!("bash -c 'echo x >>{path}'"));
    }
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/dev/mem",
        "/proc/1/oom_score_adj_x",
    ] {
        attempts.hostile(&format!("write {path}"), &format!("bash -c 'echo x >{path}'"));
    }
    for path in ["/workspace/x", "/tmp/x", "/home/agent/x"] {
        attempts.control(&format!("write {path}"), &format!("bash -c 'echo x >>{path}'"));
    }
    attempts.hostile("a namespace of its own", "unshare -Ur true");
    attempts.hostile("a mount", "mount -t tmpfs none /tmp");
    attempts.hostile("root", "su root -c true");
    attempts.hostile("the container engine", "ls /run/containerd /var/run/docker.sock /var/lib/kubelet");
    let output = bash(&tenant, &hostile, &format!("{FORGE}{}", attempts.script()));
    eprintln!("{output}");
    attempts.assert(&output);
    // The ports heard them: they were refused by an answer.
    let said = outcomes(&output);
    for (name, outcome) in said.iter().filter(|(name, _)| name.starts_with("a bridge with")) {
        assert!(outcome.contains(r#""ok":false"#), "{name}: {outcome}");
    }
    assert!(said["a token with the sandbox of another"].contains(" 401 "), "{output}");
    assert!(said["a proxy with the sandbox of another"].contains(" 407 "), "{output}");

    // The only token in the pod is none for the API server, which knows one that is.
    let token = tenant.done(&["exec", &own, "--", "cat", "/var/run/ash/token/token"]);
    let account = tenant.done(&["create", "token", "default"]);
    let server = format!("https://{}", at(&cluster, "service/kubernetes", "default", "{.spec.clusterIP}"));
    let [refused, known] = [token, account].map(|token| {
        let mut kubectl = cluster.command("kubectl");
        kubectl.args([
            "--kubeconfig=/dev/null",
            "--insecure-skip-tls-verify",
            "--server",
            &server,
            "--token",
            token.trim(),
        ]);
        let output = kubectl.args(["get", "pods", "-n", tenant.name]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    assert!(known.contains("Forbidden"), "{known}");
    assert!(refused.contains("You must be logged in to the server"), "{refused}");
    // Nobody was disturbed.
    assert_eq!(tenant.answer(&neighbour, "[[count]]"), "2");
    assert_eq!(tenant.answer(&hostile, "[[count]]"), "2");
}
