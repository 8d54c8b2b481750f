//! The pod of a sandbox: a pure function from what is wanted to a manifest. Every pod satisfies the *restricted* Pod Security
//! Standard (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>); a test holds it to that.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ash_core::id::SandboxId;
use ash_crd::{LocalReference, Resources, Sandbox, names};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, EmptyDirVolumeSource, EnvVar, LocalObjectReference, NodeAffinity,
        NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSecurityContext, PodSpec, PreferredSchedulingTerm,
        ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection,
        Toleration, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

/// The container in which bridge and Claude Code run.
pub const CONTAINER: &str = "sandbox";
/// The init container that copies bridge and Claude Code for an image that is not ours.
pub const COPY_CONTAINER: &str = "copy-programs";
/// The init container that starts Claude Code once in an image that is not ours: it fails where there is no glibc, or another
/// architecture. Nothing but that makes it fail.
pub const CHECK_CONTAINER: &str = "check-image";
/// Whom the pods' token is for: no API server accepts it.
pub const TOKEN_AUDIENCE: &str = "ash-runner";
/// Where a bridge reads its token.
pub const TOKEN_FILE: &str = "/var/run/ash/token/token";
/// Where the runner of a node listens for bridges.
pub const BRIDGE_PORT: u16 = 4310;
/// Where the gateway of a node listens.
pub const GATEWAY_PORT: u16 = 4320;
/// The folder that Claude Code works in.
pub const WORKSPACE: &str = "/workspace";
/// The home folder of Claude Code.
pub const HOME: &str = "/home/agent";

const TOKEN_FOLDER: &str = "/var/run/ash/token";
const PROGRAMS: &str = "/ash";
/// The uid and gid of everything in a sandbox.
pub(crate) const USER: i64 = 1000;
/// The kubelet renews the token when a fifth of this is left.
const TOKEN_SECONDS: i64 = 3600;
/// A bridge says what it has within this time; there is nothing else to wait for.
const GRACE_SECONDS: i64 = 5;
/// Room of the home folder, of `/tmp` and of the copied programs, over which the pod is evicted.
const HOME_SIZE: &str = "2Gi";
const TEMPORARY_SIZE: &str = "2Gi";
const PROGRAMS_SIZE: &str = "1Gi";
const PATH: &str = "/ash:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A pod's name is also its host name: 63 characters, of which 11 are the id's.
const MAX_AGENT_IN_NAME: usize = 52;
/// Digits of the id in a pod's name.
const ID_DIGITS: usize = 10;

/// What is the same for every sandbox of an installation.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The image with bridge and Claude Code.
    pub bridge_image: String,
    /// Secrets of the sandboxes' namespaces that the image is pulled with.
    pub pull_secrets: Vec<String>,
    /// Whether a pod gets a user namespace of its own.
    pub user_namespaces: bool,
    /// What a sandbox gets whose agent says nothing.
    pub resources: Resources,
}

impl Installation {
    /// An installation with this image and defaults: half a GiB and a tenth of a processor asked for, 2 GiB and 2 processors at
    /// the most.
    pub fn new(bridge_image: impl Into<String>) -> Self {
        let quantities = |pairs: [(&str, &str); 2]| {
            pairs.into_iter().map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).collect()
        };
        Self {
            bridge_image: bridge_image.into(),
            pull_secrets: Vec::new(),
            user_namespaces: false,
            resources: Resources {
                requests: quantities([("cpu", "100m"), ("memory", "512Mi")]),
                limits: quantities([("cpu", "2"), ("memory", "2Gi")]),
            },
        }
    }
}

/// A sandbox that is to be.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Its id.
    pub id: SandboxId,
    /// The namespace.
    pub namespace: &'a str,
    /// The agent's name.
    pub agent: &'a str,
    /// The agent's version.
    pub version: u32,
    /// What the version says about its sandboxes.
    pub sandbox: &'a Sandbox,
    /// The session that it is made for, by name and uid; none where it is to be warm.
    pub session: Option<(&'a str, &'a str)>,
    /// Whose end is its end: the session, or the agent of a warm one.
    pub owner: Option<OwnerReference>,
    /// The address of the pool's Service: an IP, since there is no DNS in a sandbox.
    pub host: &'a str,
    /// The node whose runner has the most room.
    pub preferred_node: Option<&'a str>,
}

/// The name of a sandbox's pod: the agent's name and the last ten digits of the id, which are random.
pub fn pod_name(agent: &str, id: SandboxId) -> String {
    let digits = id.0.simple().to_string();
    let agent: String = agent.to_ascii_lowercase().chars().take(MAX_AGENT_IN_NAME).collect();
    // A host name has no dot that could end a label, and no edge that is none.
    let agent = agent.replace(['.', '_'], "-");
    format!("{}-{}", agent.trim_matches('-'), &digits[digits.len() - ID_DIGITS..])
}

/// The labels of a sandbox's pod.
pub fn labels(wanted: &Wanted<'_>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        (names::MANAGED_BY, names::MANAGER.to_owned()),
        (names::COMPONENT, names::SANDBOX.to_owned()),
        (names::AGENT, wanted.agent.to_owned()),
        (names::AGENT_VERSION, wanted.version.to_string()),
        (names::SANDBOX_ID, wanted.id.to_string()),
        (names::NODE_POOL, wanted.sandbox.node_pool.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    match wanted.session {
        Some((name, uid)) => {
            labels.insert(names::SESSION.to_owned(), name.to_owned());
            labels.insert(names::SESSION_UID.to_owned(), uid.to_owned());
        }
        None => {
            labels.insert(names::WARM.to_owned(), "true".to_owned());
        }
    }
    labels
}

/// The pod of a sandbox.
pub fn pod(installation: &Installation, wanted: &Wanted<'_>) -> Pod {
    let sandbox = wanted.sandbox;
    let own_image = sandbox.image.as_deref();
    let mut volumes = vec![
        empty_dir("workspace", &sandbox.workspace_size_limit),
        empty_dir("home", HOME_SIZE),
        empty_dir("tmp", TEMPORARY_SIZE),
        token(),
    ];
    if own_image.is_some() {
        volumes.push(empty_dir("ash", PROGRAMS_SIZE));
    }
    let mut secrets: Vec<&str> = installation.pull_secrets.iter().map(String::as_str).collect();
    secrets.extend(sandbox.image_pull_secrets.iter().map(|LocalReference { name }| name.as_str()));
    secrets.dedup();
    let pool = (names::NODE_POOL.to_owned(), sandbox.node_pool.clone());
    Pod {
        metadata: ObjectMeta {
            name: Some(pod_name(wanted.agent, wanted.id)),
            namespace: Some(wanted.namespace.to_owned()),
            labels: Some(labels(wanted)),
            owner_references: wanted.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![container(installation, wanted)],
            init_containers: own_image.map(|image| init_containers(installation, sandbox, image)),
            volumes: Some(volumes),
            image_pull_secrets: Some(secrets)
                .filter(|secrets| !secrets.is_empty())
                .map(|names| names.into_iter().map(|name| LocalObjectReference { name: name.to_owned() }).collect()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(seccomp()),
                ..PodSecurityContext::default()
            }),
            // A runtime of another kind has a kernel of its own, and none that we know takes a user namespace: gVisor does not start.
            host_users: (installation.user_namespaces && sandbox.runtime_class_name.is_none()).then_some(false),
            // Its token is for runners only; it has no rights anywhere.
            service_account_name: Some("default".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            runtime_class_name: sandbox.runtime_class_name.clone(),
            node_selector: Some(BTreeMap::from([pool.clone()])),
            tolerations: Some(vec![Toleration {
                key: Some(pool.0),
                operator: Some("Equal".to_owned()),
                value: Some(pool.1),
                ..Toleration::default()
            }]),
            affinity: wanted.preferred_node.map(near),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(installation: &Installation, wanted: &Wanted<'_>) -> Container {
    let sandbox = wanted.sandbox;
    let own_image = sandbox.image.as_deref();
    let bridge = if own_image.is_some() { format!("{PROGRAMS}/ash-bridge") } else { "ash-bridge".to_owned() };
    let arguments = [
        format!("--host=tcp:{}", socket(wanted.host, BRIDGE_PORT)),
        format!("--token-file={TOKEN_FILE}"),
        format!("--sandbox={}", wanted.id),
        format!("--workspace={WORKSPACE}"),
        "--no-gateway".to_owned(),
    ];
    let mut mounts = vec![
        mount("workspace", WORKSPACE),
        mount("home", HOME),
        mount("tmp", "/tmp"),
        read_only("token", TOKEN_FOLDER),
    ];
    let mut variables = vec![variable("HOME", HOME)];
    if own_image.is_some() {
        mounts.push(read_only("ash", PROGRAMS));
        variables.push(variable("PATH", PATH));
    }
    Container {
        name: CONTAINER.to_owned(),
        image: Some(own_image.unwrap_or(&installation.bridge_image).to_owned()),
        image_pull_policy: own_image.and(sandbox.image_pull_policy).map(|policy| policy.name().to_owned()),
        command: Some(vec![bridge]),
        args: Some(arguments.to_vec()),
        working_dir: Some(WORKSPACE.to_owned()),
        env: Some(variables),
        resources: Some(resources(&sandbox.resources, &installation.resources)),
        volume_mounts: Some(mounts),
        security_context: Some(confined()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// Brings bridge and Claude Code into an image that is not ours, and tries whether they run there.
fn init_containers(installation: &Installation, sandbox: &Sandbox, image: &str) -> Vec<Container> {
    let copy = format!("cp -L \"$(command -v ash-bridge)\" \"$(command -v claude)\" {PROGRAMS}/");
    let quantities = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    // A limit alone would be asked for, too, and for the pod's whole life.
    let small = ResourceRequirements {
        limits: quantities("1", "1Gi"),
        requests: quantities("10m", "64Mi"),
        ..ResourceRequirements::default()
    };
    let init = |name: &str, image: &str, command: Vec<String>, mounts: Vec<VolumeMount>| Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        command: Some(command),
        env: Some(vec![variable("HOME", "/tmp")]),
        volume_mounts: Some(mounts),
        resources: Some(small.clone()),
        security_context: Some(confined()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    let shell = vec!["/bin/sh".to_owned(), "-ec".to_owned(), copy];
    let version = vec![format!("{PROGRAMS}/claude"), "--version".to_owned()];
    vec![
        init(COPY_CONTAINER, &installation.bridge_image, shell, vec![mount("ash", PROGRAMS), mount("tmp", "/tmp")]),
        Container {
            image_pull_policy: sandbox.image_pull_policy.map(|policy| policy.name().to_owned()),
            ..init(CHECK_CONTAINER, image, version, vec![read_only("ash", PROGRAMS), mount("tmp", "/tmp")])
        },
    ]
}

/// Address and port as one word: an address of IPv6 in brackets.
fn socket(host: &str, port: u16) -> String {
    host.parse().map_or_else(|_| format!("{host}:{port}"), |address: IpAddr| SocketAddr::new(address, port).to_string())
}

/// What an agent asks for, over what the installation gives. A default request never exceeds a limit that the agent set.
fn resources(own: &Resources, defaults: &Resources) -> ResourceRequirements {
    let mut limits = defaults.limits.clone();
    limits.extend(own.limits.clone());
    // Whoever sets a limit alone gets it as the request too, as Kubernetes does.
    let mut requests: BTreeMap<String, Quantity> =
        defaults.requests.clone().into_iter().filter(|(name, _)| !own.limits.contains_key(name)).collect();
    requests.extend(own.requests.clone());
    // A limit of the installation does not bound what the agent asked for.
    limits.retain(|name, _| own.limits.contains_key(name) || !own.requests.contains_key(name));
    ResourceRequirements { limits: Some(limits), requests: Some(requests), ..ResourceRequirements::default() }
}

/// What every container may do: nothing beyond its own files.
pub(crate) fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        seccomp_profile: Some(seccomp()),
        ..SecurityContext::default()
    }
}

pub(crate) fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn near(node: &str) -> Affinity {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let preference = NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    Affinity {
        node_affinity: Some(NodeAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![PreferredSchedulingTerm {
                preference,
                weight: 100,
            }]),
            required_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

pub(crate) fn empty_dir(name: &str, size: &str) -> Volume {
    let source =
        EmptyDirVolumeSource { size_limit: Some(Quantity(size.to_owned())), ..EmptyDirVolumeSource::default() };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

fn token() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
        ..ServiceAccountTokenProjection::default()
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let projected = ProjectedVolumeSource { sources: Some(vec![source]), ..ProjectedVolumeSource::default() };
    Volume { name: "token".to_owned(), projected: Some(projected), ..Volume::default() }
}

pub(crate) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub(crate) fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount(name, path) }
}

pub(crate) fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

#[cfg(test)]
mod tests;
