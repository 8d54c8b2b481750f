//! A namespace of one test, with what a test does in it.

use std::process::Output;

use serde_json::{Value, json};

use super::{
    Cluster,
    kubectl::{text_of, timeout},
};

/// A namespace with a name of its own, in which pods have to be `restricted`. Dropped, it goes with all that is in it;
/// where the test has failed, its state is printed before.
#[derive(Debug)]
pub struct Namespace<'cluster> {
    cluster: &'cluster Cluster,
    name: String,
}

impl Cluster {
    /// Makes a namespace for a test; the name begins with this.
    ///
    /// # Panics
    /// When the API server refuses.
    pub fn namespace(&self, prefix: &str) -> Namespace<'_> {
        let name = format!("{prefix}-{:08x}", fastrand::u32(..));
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/enforce-version": "latest",
            }},
        });
        self.apply(&manifest.to_string());
        let namespace = Namespace { cluster: self, name };
        // Pods are refused until the controller has made it.
        self.eventually("the namespace's service account", |_| {
            namespace.kubectl(&["get", "serviceaccount", "default"], None).status.success().then_some(())
        });
        namespace
    }
}

impl Namespace<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in this namespace, with what it reads.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Output {
        self.cluster.kubectl(&self.with_name(arguments), input)
    }

    /// Runs kubectl in this namespace, which has to succeed; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn done(&self, arguments: &[&str]) -> String {
        self.cluster.done(&self.with_name(arguments))
    }

    /// Runs kubectl in this namespace, which has to refuse; what it said.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn refused(&self, arguments: &[&str], input: Option<&str>) -> String {
        self.cluster.refused(&self.with_name(arguments), input)
    }

    /// What kubectl prints as JSON of this namespace.
    ///
    /// # Panics
    /// When it fails.
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.cluster.json(&self.with_name(arguments))
    }

    /// Applies manifests in this namespace.
    ///
    /// # Panics
    /// When they are refused.
    pub fn apply(&self, manifests: &str) {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        text_of(self.kubectl(&arguments, Some(manifests)), &arguments);
    }

    /// Waits until something is so, as `kubectl wait --for` has it: `wait("pod/a", "condition=Ready")`.
    ///
    /// # Panics
    /// When it is not within [`super::DEADLINE`].
    pub fn wait(&self, object: &str, condition: &str) {
        self.done(&["wait", object, &format!("--for={condition}"), &timeout()]);
    }

    /// What a pod or workload has logged.
    ///
    /// # Panics
    /// When there is none.
    pub fn logs(&self, object: &str) -> String {
        self.done(&["logs", object, "--all-containers"])
    }

    /// Runs a program in a pod; whether it succeeded, and all that it printed.
    pub fn exec(&self, pod: &str, command: &[&str]) -> (bool, String) {
        let arguments: Vec<&str> = ["exec", pod, "--"].iter().chain(command).copied().collect();
        let output = self.kubectl(&arguments, None);
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), said)
    }

    fn with_name<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        ["--namespace", &self.name].iter().chain(arguments).copied().collect()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.cluster.dump(&self.name));
        }
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"], None);
    }
}
