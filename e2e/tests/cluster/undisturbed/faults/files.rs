//! Files outlive their pod where the chart has an object storage.

use std::{fs, path::Path};

use ash_e2e::{
    cluster::{Cluster, SYSTEM_NAMESPACE},
    harness::{ObjectStorage, STORAGE_KEYS},
};
use serde_json::json;

use super::{begun, end, pod_of};
use crate::tenant::Tenant;

/// The Service behind which this process has the storage, and the Secret with its keys.
const STORAGE: &str = "storage";

fn bash(command: &str) -> String {
    format!("[[tool: Bash {}]] [[result]]", json!({ "command": command }))
}

/// How many objects of a kind are in the storage.
fn objects(folder: &Path, kind: &str) -> usize {
    let (mut found, mut open) = (0, vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(&format!("/{kind}/")) {
                found += 1;
            }
        }
    }
    found
}

#[test]
fn a_session_whose_pod_is_deleted_wakes_in_another_with_its_files() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let address = cluster.host_address();
    let storage = cluster.inside(|| ObjectStorage::start_on(address));
    let port = storage.address().port();
    cluster.expose(SYSTEM_NAMESPACE, STORAGE, port);
    let (id, secret) = STORAGE_KEYS;
    let keys = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": STORAGE, "namespace": SYSTEM_NAMESPACE },
        "stringData": { "access-key-id": id, "secret-access-key": secret },
    });
    cluster.apply(&keys.to_string());
    cluster.upgrade_with(&[
        format!("objectStore.url={}", storage.url()),
        format!("objectStore.endpoint=http://{STORAGE}.{SYSTEM_NAMESPACE}.svc:{port}"),
        format!("objectStore.secret.name={STORAGE}"),
    ]);

    tenant.agent("file-faults", &json!({}));
    let session = begun(&tenant, "file-faults");
    let manifests = || objects(&storage.folder(), "manifests");
    cluster.eventually("a snapshot is in the storage", |_| (manifests() == 1).then_some(()));
    let make = "mkdir -p deep && echo kept > deep/note && ln -s deep/note link && head -c 5000000 /dev/urandom > large && sha256sum < large";
    let sum = tenant.answer(&session.id, &bash(make));
    cluster.eventually("the next one is in the storage", |_| (manifests() == 2).then_some(()));
    assert!(objects(&storage.folder(), "segments") > 0);
    let pod = pod_of(&tenant, &session);
    tenant.done(&["delete", "pod", &pod, "--wait=false"]);
    let client = tenant.client();
    cluster.eventually("the session is asleep", |cluster| {
        let found = cluster.run(async { client.session(&session.id).await }).ok()?;
        (found.status == "paused").then_some(())
    });
    let woken = tenant.say(&session.id, &bash("cat link; sha256sum < large"));
    assert_eq!(
        woken.result().map(|text| text.trim().to_owned()),
        Some(format!("kept\n{}", sum.trim())),
        "{:?}",
        woken.names()
    );
    assert!(tenant.answer(&session.id, "[[history]]").contains("mkdir -p deep"), "with its conversation");
    assert_ne!(pod_of(&tenant, &session), pod);
    end(&tenant, &[session]);
    // Whoever has the cluster next has no storage.
    cluster.upgrade();
}
