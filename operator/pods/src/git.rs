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

/// Clones, packs, prints. The last word goes to the termination message: `ok COMMIT SHA256`, or a word and Git's own sentence.
const SCRIPT: &str = r#"
set -u
end() { printf '%s' "$1" | tail -c 3000 > /dev/termination-log; exit "$2"; }
failed() {
  text=$(tail -c 2000 /tmp/error)
  case "$text" in
    *"uthentication failed"*|*"could not read Username"*|*"could not read Password"*|*"ermission denied"*|*"403"*|*"Host key verification"*) end "denied: $text" 1 ;;
    *"find remote ref"*|*"not our ref"*|*"unadvertised object"*|*"epository not found"*|*"not found"*) end "not-found: $text" 1 ;;
    *) end "unreachable: $text" 1 ;;
  esac
}
export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1
if [ -f /credential/password ]; then
  printf '#!/bin/sh\ncase "$1" in Username*) cat /credential/username 2>/dev/null || echo git ;; *) cat /credential/password ;; esac\n' > /tmp/ask
  chmod 700 /tmp/ask
  export GIT_ASKPASS=/tmp/ask
fi
if [ -f /credential/ssh-privatekey ]; then
  cp /credential/ssh-privatekey /tmp/key && chmod 600 /tmp/key
  known="-o StrictHostKeyChecking=yes -o UserKnownHostsFile=/credential/known_hosts"
  export GIT_SSH_COMMAND="ssh -i /tmp/key -o IdentitiesOnly=yes $known"
fi
git init -q /tmp/repository 2> /tmp/error || failed
cd /tmp/repository
git -c protocol.file.allow=never fetch -q --depth 1 -- "$ASH_GIT_URL" "$ASH_GIT_REVISION" 2> /tmp/error || failed
git -c advice.detachedHead=false checkout -q FETCH_HEAD 2> /tmp/error || failed
commit=$(git rev-parse HEAD)
cd "./$ASH_GIT_FOLDER" 2> /dev/null || end "not-found: the repository has no folder $ASH_GIT_FOLDER at this revision" 1
tar -c --exclude=./.git -f /tmp/archive . 2> /tmp/error || failed
[ "$(stat -c %s /tmp/archive)" -le 6291456 ] || end "too-large: the folder has more than 6 MiB: upload it with ash deploy instead, or name a smaller folder in spec.source.git.path" 1
base64 /tmp/archive
end "ok $commit $(sha256sum /tmp/archive | cut -d' ' -f1)" 0
"#;

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
    let environment: Vec<EnvVar> = vec![
        variable("HOME", "/tmp"),
        variable("ASH_GIT_URL", &source.url),
        variable("ASH_GIT_REVISION", &source.revision),
        variable("ASH_GIT_FOLDER", source.path.as_deref().unwrap_or(".")),
    ];
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

#[cfg(test)]
mod tests {
    use ash_crd::{GitSource, LocalReference};

    use crate::manifest::Installation;

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
            &source
        ));
    }
}
