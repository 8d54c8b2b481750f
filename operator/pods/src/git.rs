//! The pod that clones a repository: in the agent's namespace, as locked down as a sandbox, without a token of any kind.

use std::collections::BTreeMap;

use ash_crd::{GitSource, names};
use k8s_openapi::{
    api::core::v1::{
        Container, EnvVar, LocalObjectReference, Pod, PodSecurityContext, PodSpec, ResourceRequirements,
        SecretVolumeSource, Volume,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use crate::manifest::{Installation, USER, confined, empty_dir, mount, read_only, seccomp, variable};

/// Seconds after which a clone that hangs is ended.
const DEADLINE_SECONDS: i64 = 300;
/// A pod's name is also its host name: 63 characters.
const MAX_AGENT_IN_NAME: usize = 36;
/// Where the credential is.
const CREDENTIAL: &str = "/credential";

/// Clones, packs, prints. The last word goes to the termination message: `ok COMMIT SHA256`, or a word and a sentence, Git's own
/// where it said one.
const SCRIPT: &str = include_str!("git/clone.sh");
/// The longest archive, compressed: 6 MiB. In base64 it is a log of 8 MiB, of which a node keeps 10 MiB.
pub const MAX_ARCHIVE_BYTES: u64 = 6 << 20;
/// Text of authorities that a clone takes at the most: 512 KiB, twice what a distribution has. It travels in the pod's manifest.
pub const MAX_AUTHORITIES_BYTES: usize = 512 << 10;
/// Text in one variable: the kernel takes 128 KiB.
const VARIABLE_BYTES: usize = 64 << 10;

/// How clones reach repositories, the same for all of an installation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// The proxy for `https://`. It is in the pod's manifest, for everybody who may read pods in the agent's namespace.
    pub https_proxy: Option<String>,
    /// What is reached without it.
    pub no_proxy: Option<String>,
    /// Authorities to trust beside those of the image, as PEM, at most [`MAX_AUTHORITIES_BYTES`]; what is more is left away.
    pub authorities: Option<String>,
}

/// The name of the pod that clones for one generation of an agent.
pub fn pod_name(agent: &str, uid: &str, generation: i64) -> String {
    let agent: String = agent.chars().take(MAX_AGENT_IN_NAME).collect();
    let uid: String = uid.chars().filter(char::is_ascii_hexdigit).take(6).collect();
    format!("{}-git-clone-{uid}-{generation}", agent.replace('.', "-").trim_matches('-'))
}

/// The pod.
pub fn pod(
    installation: &Installation,
    namespace: &str,
    name: &str,
    agent: &str,
    owner: Option<OwnerReference>,
    source: &GitSource,
    way: &Way,
) -> Pod {
    let labels = [(names::MANAGED_BY, names::MANAGER), (names::COMPONENT, names::GIT_CLONE), (names::AGENT, agent)];
    let mut volumes = vec![empty_dir("tmp", "1Gi")];
    let mut mounts = vec![mount("tmp", "/tmp")];
    if let Some(secret) = &source.secret_ref {
        let secret = SecretVolumeSource {
            secret_name: Some(secret.name.clone()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        };
        volumes.push(Volume { name: "credential".to_owned(), secret: Some(secret), ..Volume::default() });
        mounts.push(read_only("credential", CREDENTIAL));
    }
    let mut environment: Vec<EnvVar> = vec![
        variable("HOME", "/tmp"),
        variable("ASH_GIT_URL", &source.url),
        variable("ASH_GIT_REVISION", &source.revision),
        variable("ASH_GIT_FOLDER", source.path.as_deref().unwrap_or(".")),
        variable("ASH_GIT_MAX_BYTES", &MAX_ARCHIVE_BYTES.to_string()),
    ];
    environment.extend(variables(way));
    let quantities = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    let pull = installation.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "git".to_owned(),
                image: Some(installation.bridge_image.clone()),
                command: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), SCRIPT.to_owned()]),
                env: Some(environment),
                volume_mounts: Some(mounts),
                resources: Some(ResourceRequirements {
                    limits: quantities("1", "1Gi"),
                    requests: quantities("50m", "128Mi"),
                    ..ResourceRequirements::default()
                }),
                security_context: Some(confined()),
                ..Container::default()
            }],
            volumes: Some(volumes),
            image_pull_secrets: Some(pull).filter(|secrets: &Vec<_>| !secrets.is_empty()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(seccomp()),
                ..PodSecurityContext::default()
            }),
            host_users: installation.user_namespaces.then_some(false),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            termination_grace_period_seconds: Some(0),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// What tells Git how repositories are reached.
fn variables(way: &Way) -> Vec<EnvVar> {
    let proxy = way.https_proxy.as_ref().map(|url| variable("HTTPS_PROXY", url));
    let direct = way.no_proxy.as_ref().map(|hosts| variable("NO_PROXY", hosts));
    let mut variables: Vec<EnvVar> = proxy.into_iter().chain(direct).collect();
    // PEM is ASCII; anything else is a comment that is not missed. A `$` would have the kubelet look for a variable.
    let plain = |text: &String| -> String {
        text.chars().filter(|character| character.is_ascii() && *character != '$').take(MAX_AUTHORITIES_BYTES).collect()
    };
    let authorities = way.authorities.as_ref().map(plain).unwrap_or_default();
    let mut rest = authorities.as_str();
    for part in 1.. {
        let (first, next) = rest.split_at(rest.len().min(VARIABLE_BYTES));
        if first.is_empty() {
            break;
        }
        variables.push(variable(&format!("ASH_GIT_CA_{part}"), first));
        rest = next;
    }
    variables
}

#[cfg(test)]
mod tests {
    use ash_crd::{GitSource, LocalReference};

    use super::{VARIABLE_BYTES, Way};
    use crate::manifest::Installation;

    #[test]
    fn authorities_are_in_as_many_variables_as_they_need() {
        let text = |bytes: usize| Way { authorities: Some("a".repeat(bytes)), ..Way::default() };
        let lengths = |way: &Way| -> Vec<usize> {
            super::variables(way).iter().map(|variable| variable.value.as_ref().map_or(0, String::len)).collect()
        };
        assert_eq!(lengths(&Way::default()), [0; 0]);
        assert_eq!(lengths(&text(VARIABLE_BYTES)), [VARIABLE_BYTES]);
        assert_eq!(lengths(&text(VARIABLE_BYTES + 1)), [VARIABLE_BYTES, 1]);
        assert_eq!(
            lengths(&text(super::MAX_AUTHORITIES_BYTES + 1)).iter().sum::<usize>(),
            super::MAX_AUTHORITIES_BYTES
        );
    }

    #[test]
    fn a_clone() {
        let source = GitSource {
            url: "https://git.example/agents.git".to_owned(),
            revision: "main".to_owned(),
            path: Some("helper".to_owned()),
            secret_ref: Some(LocalReference { name: "git".to_owned() }),
        };
        let name = super::pod_name("helper", "01978a2b-0000", 3);
        insta::assert_yaml_snapshot!(super::pod(
            &Installation::new("ash/bridge:1"),
            "team",
            &name,
            "helper",
            None,
            &source,
            &Way {
                https_proxy: Some("http://proxy.example:3128".to_owned()),
                no_proxy: Some(".svc".to_owned()),
                authorities: Some("-----BEGIN CERTIFICATE-----\n".to_owned()),
            }
        ));
    }
}
