//! Agents whose names look alike.

use ash_test_kubernetes::Server;
use serde_json::json;

use crate::{faults::Faults, world::World};

/// The pods of one agent are called as those of the other could be, and are its own all the same.
pub async fn agents_whose_pods_are_called_alike_own_each_its_own(server: &Server) {
    let world = World::new(server, "names", Faults::default()).await;
    let names = ["a.b", "a-b", "a"];
    for name in names {
        world.apply(&json!({
            "apiVersion": "ash.dev/v1alpha1", "kind": "Agent", "metadata": { "name": name },
            "spec": { "source": { "inline": { "files": [{ "path": "CLAUDE.md", "text": "x" }] } } },
        }));
    }
    world
        .until("each has a warm sandbox", || names.iter().all(|name| world.get("agent", name, "{.status.warm}") == "1"))
        .await;
    for name in names {
        let agent = world.agent(name).await.unwrap().id;
        let row = world.rows.all().into_iter().find(|row| row.agent == agent).unwrap();
        assert_eq!(world.get("pod", &row.pod, r"{.metadata.labels.ash\.dev/agent}"), name);
        assert_eq!(world.get("pod", &row.pod, "{.metadata.ownerReferences[*].name}"), name);
    }
    world.end().await;
}
