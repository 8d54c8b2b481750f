//! The sandbox of an agent's sessions, as a manifest has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    environment::{self, EnvironmentVariable},
    network::Network,
    reference::LocalReference,
    resources::Resources,
    schema::{object_name_rule, rule},
};

/// The node pool where nothing is said.
const DEFAULT_NODE_POOL: &str = "default";

/// The room of a workspace where nothing is said.
const DEFAULT_WORKSPACE: &str = "10Gi";

/// The sandboxes of an agent's sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Sandbox {
    /// The image that the agent works in. Any image with glibc will do: Claude Code and Ash's bridge are brought in. Ash's own
    /// image where absent, with git, ripgrep and a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 512),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$')",
            "this is no image: use registry/name:tag or registry/name@sha256:digest",
        )])
    )]
    pub image: Option<String>,
    /// When the image is pulled: Always, IfNotPresent or Never. As Kubernetes decides by the tag where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ImagePullPolicy")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Secrets of this namespace with the credentials of the image's registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<LocalReference>,
    /// Processors, memory and devices. The defaults of the installation where absent.
    #[serde(default)]
    pub resources: Resources,
    /// Room of the workspace on the node, over which the sandbox is evicted and its session sleeps.
    #[serde(default = "default_workspace")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-validations" = [rule(
            "isQuantity(self) && quantity(self).isGreaterThan(quantity('0')) && !quantity(self).isGreaterThan(quantity('16Ti'))",
            "use a size of more than 0 and at most 16Ti with a unit, such as 500Mi or 10Gi",
        )])
    )]
    pub workspace_size_limit: String,
    /// Environment variables of every session. A session's own of the same name stand over them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "environment::list")]
    pub env: Vec<EnvironmentVariable>,
    /// The RuntimeClass of the pods, for example gvisor or kata, for a stronger wall around untrusted code. The nodes' own
    /// runtime where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [object_name_rule()]))]
    pub runtime_class_name: Option<String>,
    /// Where sandboxes may connect to.
    #[serde(default)]
    pub network: Network,
    /// The node pool that sandboxes run in, by its name in the installation's values. Each pool has runners of its own.
    #[serde(default = "default_node_pool")]
    #[schemars(
        length(max = 63),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
            "this is no name of a node pool: use lower-case letters, digits and '-', as in the installation's values",
        )])
    )]
    pub node_pool: String,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ImagePullPolicy {
    /// Before every start.
    Always,
    /// Where the node does not have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl ImagePullPolicy {
    /// As a pod has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

impl Sandbox {
    /// What a version keeps of it: all but the variables, which may be secrets, and the network, which the settings have. Nothing
    /// where that is the default, so that an agent from REST has the same settings as its resource.
    pub fn of_version(&self) -> Option<Map<String, Value>> {
        let kept = Self { env: Vec::new(), network: Network::default(), ..self.clone() };
        if kept == Self::default() {
            return None;
        }
        match serde_json::to_value(kept) {
            Ok(Value::Object(fields)) => Some(fields),
            _ => None,
        }
    }

    /// The sandbox that a version keeps; the default where it keeps none.
    pub fn from_version(kept: Option<&Map<String, Value>>) -> Self {
        kept.and_then(|fields| serde_json::from_value(Value::Object(fields.clone())).ok()).unwrap_or_default()
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            image: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            resources: Resources::default(),
            workspace_size_limit: default_workspace(),
            env: Vec::new(),
            runtime_class_name: None,
            network: Network::default(),
            node_pool: default_node_pool(),
        }
    }
}

fn default_workspace() -> String {
    DEFAULT_WORKSPACE.to_owned()
}

fn default_node_pool() -> String {
    DEFAULT_NODE_POOL.to_owned()
}
