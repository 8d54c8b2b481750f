//! Which pods are behind a Service and ready, and on which of their ports; from what the API server said, without asking.

use k8s_openapi::{
    api::core::v1::{Pod, Service as ServiceObject},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::cluster::ClusterError;

/// The name of the port for clients, where a Service has several.
const PORT_NAME: &str = "http";

/// A Service by its name.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Where a connection can lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) pod: String,
    pub(super) port: u16,
}

impl Service {
    /// The selector of its pods, as text.
    pub(super) fn selector(&self, object: &ServiceObject) -> Result<String, ClusterError> {
        let selector =
            object.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
        let selector = selector.ok_or_else(|| self.no_port("it selects no pods"))?;
        Ok(selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
    }

    /// The pods that are ready, in the order given.
    pub(super) fn targets(&self, object: &ServiceObject, pods: &[Pod]) -> Result<Vec<Target>, ClusterError> {
        let ports = object.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
        let port = named.or(ports.first()).ok_or_else(|| self.no_port("it has no port"))?;
        let wanted = port.target_port.clone().unwrap_or(IntOrString::Int(port.port));
        let mut ready = pods.iter().filter(|pod| is_ready(pod)).peekable();
        if ready.peek().is_none() {
            return Err(ClusterError::NoReadyPod { namespace: self.namespace.clone(), name: self.name.clone() });
        }
        let found: Vec<Target> = ready
            .filter_map(|pod| Some(Target { pod: pod.metadata.name.clone()?, port: container_port(pod, &wanted)? }))
            .collect();
        if found.is_empty() { Err(self.no_port(&format!("no pod has the port {wanted:?}"))) } else { Ok(found) }
    }

    fn no_port(&self, reason: &str) -> ClusterError {
        ClusterError::NoPort { namespace: self.namespace.clone(), name: self.name.clone(), reason: reason.to_owned() }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn container_port(pod: &Pod, wanted: &IntOrString) -> Option<u16> {
    let number = match wanted {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let containers = pod.spec.as_ref()?.containers.iter();
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|port| port.name.as_deref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use k8s_openapi::api::core::v1::{Pod, Service as ServiceObject};
    use serde_json::{Value, json};

    use super::{Service, Target};
    use crate::cluster::ClusterError;

    fn service() -> Service {
        Service { namespace: "ash-system".to_owned(), name: "ash".to_owned() }
    }

    fn object(ports: &Value) -> ServiceObject {
        serde_json::from_value(json!({ "spec": { "selector": { "b": "2", "a": "1" }, "ports": ports } })).unwrap()
    }

    fn pod(name: &str, ready: &str, port: u16) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "containers": [{ "name": "api", "ports": [{ "name": "http", "containerPort": port }] }] },
            "status": { "conditions": [{ "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn target(pod: &str, port: u16) -> Target {
        Target { pod: pod.to_owned(), port }
    }

    #[test]
    fn ready_pods_by_the_name_or_number_of_their_port() {
        let mut leaving = pod("c", "True", 4100);
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let pods = [pod("a", "True", 4100), pod("b", "False", 4100), leaving, pod("d", "True", 4999)];
        let named = json!([{ "name": "metrics", "port": 9 }, { "name": "http", "port": 80, "targetPort": "http" }]);
        assert_eq!(service().targets(&object(&named), &pods), Ok(vec![target("a", 4100), target("d", 4999)]));
        let numbered = json!([{ "port": 80, "targetPort": 4000 }]);
        assert_eq!(service().targets(&object(&numbered), &pods[..1]), Ok(vec![target("a", 4000)]));
        assert_eq!(service().targets(&object(&json!([{ "port": 80 }])), &pods[..1]), Ok(vec![target("a", 80)]));
        assert_eq!(service().selector(&object(&json!([]))).unwrap(), "a=1,b=2");
    }

    #[test]
    fn what_is_missing_is_said() {
        let named = json!([{ "port": 80, "targetPort": "web" }]);
        let none = service().targets(&object(&named), &[pod("b", "False", 1)]).unwrap_err();
        assert!(matches!(none, ClusterError::NoReadyPod { .. }) && none.is_transient(), "{none}");
        let no_port = service().targets(&object(&named), &[pod("a", "True", 1)]).unwrap_err();
        assert!(matches!(no_port, ClusterError::NoPort { .. }) && no_port.to_string().contains("web"), "{no_port}");
        assert!(matches!(service().targets(&object(&json!([])), &[]), Err(ClusterError::NoPort { .. })));
        assert!(matches!(service().selector(&ServiceObject::default()), Err(ClusterError::NoPort { .. })));
    }
}
