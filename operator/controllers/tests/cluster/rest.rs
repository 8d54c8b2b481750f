//! What REST calls write, beside what others write into the same objects.

use ash_bundle::Bundle;
use ash_core::{
    agent::AgentSettings,
    id::TenantId,
    ports::{AgentRequest, Resources as _},
};
use ash_test_kubernetes::Server;
use serde_json::json;

use crate::{faults::Faults, world::World};

fn deployment(world: &World<'_>, text: &str) -> (AgentRequest, Bundle) {
    let bundle = Bundle::from_files([("CLAUDE.md".to_owned(), text.as_bytes().to_vec())]).unwrap();
    let request = AgentRequest {
        tenant: TenantId(world.namespace.clone()),
        name: "helper".parse().unwrap(),
        slug: None,
        description: None,
        settings: AgentSettings::default(),
        digest: bundle.digest(),
    };
    (request, bundle)
}

/// A version that REST makes has what others have set on the agent, so that it is the operator's version, too; one whose resource
/// was never written is replaced.
pub async fn a_deployment_keeps_what_others_have_set(server: &Server) {
    let world = World::new(server, "rest", Faults::default()).await;
    let resources = world.resources();
    let version = |number: &str| world.get("agent", "helper", "{.status.version}") == number;
    let (first, bundle) = deployment(&world, "Be kind.");
    let settings = resources.check_agent(&first).await.unwrap();
    assert_eq!(settings, AgentSettings::default());
    assert_eq!(world.deploy(&first, settings, &bundle).await, 1);
    resources.apply_agent(first).await.unwrap();
    world.until("the agent is ready", || world.reason("agent", "helper") == "Deployed" && version("1")).await;
    // Without warm sandboxes nothing but the version changes.
    let others = json!({ "spec": {
        "warm": { "min": 0, "max": 0 },
        "limits": { "maxBudgetUsd": 1.5 },
        "sandbox": { "workspaceSizeLimit": "20Gi" },
    } });
    world.patch("agent", "helper", &others);
    world.until("that is a version", || version("2")).await;
    let (second, bundle) = deployment(&world, "Be brief.");
    let settings = resources.check_agent(&second).await.unwrap();
    assert_eq!(settings.limits.max_budget_usd, Some(1.5));
    assert_eq!(settings.sandbox.as_ref().unwrap()["workspaceSizeLimit"], "20Gi");
    assert_eq!(world.deploy(&second, settings.clone(), &bundle).await, 3);
    resources.apply_agent(second).await.unwrap();
    world.until("its status says so", || version("3")).await;
    world.settle().await;
    assert_eq!(world.version("helper").await.number, 3, "the operator would have made the same");
    // The API server went away between version and resource.
    let (third, bundle) = deployment(&world, "Be gone.");
    assert_eq!(world.deploy(&third, settings, &bundle).await, 4);
    world.until("new sessions get what the resource says", || version("5")).await;
    assert_eq!(world.version("helper").await.digest, world.get("agent", "helper", "{.spec.source.bundle.digest}"));
    world.end().await;
}
