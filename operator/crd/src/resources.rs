//! Processors, memory and devices of a sandbox.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::schema::rule;

/// Processors, memory and devices of a sandbox's container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline, extend("x-kubernetes-validations" = [
    rule(
        "!has(self.limits) || !has(self.requests) || self.requests.all(k, !(k in self.limits) || \
         quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
        "a request is greater than its limit: lower the request or raise the limit",
    ),
    rule(
        "!has(self.requests) || self.requests.all(k, k in ['cpu', 'memory', 'ephemeral-storage'])",
        "requests are for cpu, memory and ephemeral-storage: set extended resources such as nvidia.com/gpu in limits only",
    ),
]))]
pub struct Resources {
    /// What a node must have free for a sandbox to be placed there: cpu, memory, ephemeral-storage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What a sandbox may use at the most: cpu, memory, ephemeral-storage, and extended resources such as nvidia.com/gpu. Over
    /// its memory Claude Code is killed, and started again with its conversation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// Quantities by resource, each a number or a text, as Kubernetes takes them.
fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
        },
        "x-kubernetes-validations": [rule(
            "self.all(k, isQuantity(string(self[k])) && !quantity(string(self[k])).isLessThan(quantity('0')))",
            "this is no quantity of a resource: use a number with an optional unit, such as 2, 500m, 512Mi or 4Gi, not below 0",
        )],
    })
}
