#![allow(clippy::unwrap_used)]

use ash_core::id::SandboxId;
use ash_crd::{LocalReference, Sandbox};
use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Installation, Wanted, pod, pod_name};

const ID: SandboxId = SandboxId(Uuid::from_u128(0x0197_8a2b_0000_7000_8000_0123_4567_89ab));

fn wanted(sandbox: &Sandbox) -> Wanted<'_> {
    Wanted {
        id: ID,
        namespace: "team",
        agent: "helper",
        version: 3,
        sandbox,
        session: None,
        owner: None,
        host: "10.0.0.7",
        preferred_node: None,
    }
}

/// The rules of the standard *restricted*, with the stricter ones of our own.
fn satisfies_restricted(pod: &Pod) {
    let spec = pod.spec.as_ref().unwrap();
    assert!(!spec.host_network.unwrap_or_default() && !spec.host_pid.unwrap_or_default());
    assert!(!spec.host_ipc.unwrap_or_default());
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.enable_service_links, Some(false));
    for volume in spec.volumes.iter().flatten() {
        assert!(volume.host_path.is_none());
        assert!(volume.empty_dir.is_some() || volume.projected.is_some(), "{volume:?}");
        let size = volume.empty_dir.as_ref().map(|folder| folder.size_limit.is_some());
        assert_ne!(size, Some(false), "a folder without a bound");
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            assert_eq!(source.service_account_token.as_ref().unwrap().audience.as_deref(), Some("ash-runner"));
        }
    }
    let containers: Vec<&Container> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    for container in containers {
        let context = container.security_context.as_ref().unwrap();
        assert_eq!(context.allow_privilege_escalation, Some(false));
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(context.read_only_root_filesystem, Some(true));
        assert_ne!(context.run_as_user, Some(0));
        assert_ne!(context.privileged, Some(true));
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
        assert!(capabilities.add.is_none());
        assert_eq!(context.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
        assert!(container.ports.is_none(), "a sandbox does not listen");
        assert!(container.resources.as_ref().unwrap().limits.is_some());
    }
}

#[test]
fn a_warm_pod() {
    let sandbox = Sandbox::default();
    let made = pod(&Installation::new("ash/bridge:1"), &wanted(&sandbox));
    satisfies_restricted(&made);
    insta::assert_yaml_snapshot!(made);
}

#[test]
fn a_pod_for_a_session_in_an_image_of_its_own() {
    let mut sandbox = Sandbox {
        image: Some("registry/tools:2".to_owned()),
        image_pull_secrets: vec![LocalReference { name: "registry".to_owned() }],
        runtime_class_name: Some("gvisor".to_owned()),
        node_pool: "gpu".to_owned(),
        workspace_size_limit: "20Gi".to_owned(),
        ..Sandbox::default()
    };
    sandbox.resources.limits.insert("nvidia.com/gpu".to_owned(), Quantity("1".to_owned()));
    sandbox.resources.limits.insert("memory".to_owned(), Quantity("8Gi".to_owned()));
    let installation = Installation {
        pull_secrets: vec!["pull".to_owned()],
        user_namespaces: true,
        ..Installation::new("ash/bridge:1")
    };
    let wanted = Wanted { session: Some(("talk", "uid-1")), preferred_node: Some("node2"), ..wanted(&sandbox) };
    let made = pod(&installation, &wanted);
    satisfies_restricted(&made);
    insta::assert_yaml_snapshot!(made);
}

#[test]
fn a_bridge_is_told_an_address_that_it_can_read() {
    let sandbox = Sandbox::default();
    for (host, written) in [("10.0.0.7", "tcp:10.0.0.7:4310"), ("fd00::7", "tcp:[fd00::7]:4310")] {
        let made = pod(&Installation::new("x"), &Wanted { host, ..wanted(&sandbox) });
        let container = made.spec.unwrap().containers.remove(0);
        let all = [container.command, container.args].into_iter().flatten().flatten();
        assert!(all.into_iter().any(|word| word == format!("--host={written}")), "{host}");
    }
}

#[test]
fn a_runtime_of_another_kind_gets_no_user_namespace() {
    let installation = Installation { user_namespaces: true, ..Installation::new("x") };
    let enclosed = Sandbox { runtime_class_name: Some("gvisor".to_owned()), ..Sandbox::default() };
    for (sandbox, host_users) in [(Sandbox::default(), Some(false)), (enclosed, None)] {
        assert_eq!(pod(&installation, &wanted(&sandbox)).spec.unwrap().host_users, host_users);
    }
}

proptest! {
    #[test]
    fn every_pod_is_restricted_and_has_a_name(
        agent in "[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?",
        image in prop::option::of("[a-z]{1,9}:[0-9]"),
        id: u128,
        users: bool,
        session: bool,
    ) {
        let id = SandboxId(Uuid::from_u128(id));
        let name = pod_name(&agent, id);
        prop_assert!(name.len() <= 63);
        prop_assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'), "{}", name);
        prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
        let sandbox = Sandbox { image, ..Sandbox::default() };
        let installation = Installation { user_namespaces: users, ..Installation::new("x") };
        let wanted = Wanted { id, agent: &agent, session: session.then_some(("s", "u")), ..wanted(&sandbox) };
        satisfies_restricted(&pod(&installation, &wanted));
    }
}
