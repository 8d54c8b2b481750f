//! Pods of the sandbox image, as `restricted` as a sandbox.

use serde_json::{Value, json};

use ash_e2e::cluster::SANDBOX_IMAGE;

/// Answers everybody who connects to port 8080. The image has no other server than perl can be.
pub(crate) const SERVER: &str = r#"
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => 8080, Listen => 8, ReuseAddr => 1) or die;
while (my $client = $server->accept) { print $client "hello\n"; close $client }
"#;

/// A pod that runs a command in the sandbox image once.
pub(crate) fn pod(name: &str, command: &[&str]) -> Value {
    let folder = |name: &str, path: &str| json!({ "name": name, "mountPath": path });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "name": name } },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "sandbox",
                "image": SANDBOX_IMAGE,
                "imagePullPolicy": "Never",
                "command": command,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                },
                "volumeMounts": [folder("home", "/home/agent"), folder("tmp", "/tmp"), folder("workspace", "/workspace")],
            }],
            "volumes": [
                { "name": "home", "emptyDir": {} },
                { "name": "tmp", "emptyDir": {} },
                { "name": "workspace", "emptyDir": { "sizeLimit": "64Mi" } },
            ],
        },
    })
}
