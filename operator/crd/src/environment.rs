//! Environment variables of a sandbox, as a manifest has them.

use ash_core::environment::{MODEL_KEYS, RESERVED, RESERVED_PREFIXES};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{reference::SecretKeyReference, schema::rule};

/// An environment variable of a sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = rules()))]
pub struct EnvironmentVariable {
    /// The variable's name: letters, digits and '_'. Keys for the model are refused (they belong into spec.modelCredential),
    /// as are proxies, base URLs and the names that Ash sets itself.
    #[schemars(length(max = 256))]
    pub name: String,
    /// The value, in plain sight of everyone who can read this resource. At most 32 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// Where the value is read from instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvironmentSource>,
}

impl EnvironmentVariable {
    /// Whether its value is a secret: it is read from somewhere else.
    pub fn is_hidden(&self) -> bool {
        self.value.is_none()
    }
}

/// Where the value of an environment variable is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct EnvironmentSource {
    /// A key of a Secret of this namespace. The agent can read the value: it is the agent's own secret.
    pub secret_key_ref: SecretKeyReference,
}

// A plain value may be a secret that somebody put in the wrong place: it is not printed.
impl std::fmt::Debug for EnvironmentVariable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.value.as_ref().map(|_| "***");
        let from = &self.value_from;
        formatter
            .debug_struct("EnvironmentVariable")
            .field("name", &self.name)
            .field("value", &value)
            .field("from", from)
            .finish()
    }
}

/// The rules of `ash_core::environment`, as CEL.
fn rules() -> Value {
    let list = |names: &[&str]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let prefixes =
        RESERVED_PREFIXES.map(|prefix| format!("self.name.upperAscii().startsWith('{prefix}')")).join(" || ");
    let model_key = format!("self.name.upperAscii() in [{}]", list(&MODEL_KEYS));
    let route = "self.name.upperAscii().endsWith('_PROXY') || (self.name.upperAscii().startsWith('ANTHROPIC_') && \
                 self.name.upperAscii().endsWith('_BASE_URL'))";
    let reserved = format!("self.name.upperAscii() in [{}] || {prefixes}", list(&RESERVED));
    Value::Array(vec![
        rule(
            "self.name.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
            "this is no name for an environment variable: use letters, digits and '_', not beginning with a digit",
        ),
        rule(
            &format!("!({model_key})"),
            "a key for the model never goes into a sandbox: put it into a Secret and name that in the Agent's \
             spec.modelCredential",
        ),
        rule(
            &format!("!({route})"),
            "this variable would change where the sandbox's traffic goes, which is the gateway's alone: remove it",
        ),
        rule(
            &format!("{model_key} || {route} || !({reserved})"),
            "Ash sets variables of this name itself for every sandbox: remove it (for ANTHROPIC_MODEL use spec.model)",
        ),
        rule("has(self.value) != has(self.valueFrom)", "a variable has either value or valueFrom: keep one of them"),
    ])
}

/// The list of variables with its bounds; merged by name.
pub(crate) fn list(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let item = EnvironmentVariable::json_schema(generator);
    schemars::json_schema!({
        "type": "array",
        "maxItems": ash_core::environment::MAX_VARIABLES,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": item,
    })
}
