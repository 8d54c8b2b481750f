//! References to other objects of the namespace.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{object_name_rule, rule};

/// Another object of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct LocalReference {
    /// Its name.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [object_name_rule()]))]
    pub name: String,
}

/// One key of a Secret of the same namespace. Only the operator reads it; the value never stands in a resource, an event or a
/// log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline, extend("x-kubernetes-map-type" = "atomic"))]
pub struct SecretKeyReference {
    /// The Secret's name.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [object_name_rule()]))]
    pub name: String,
    /// The key in the Secret's data.
    #[schemars(
        length(max = 253),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[-._a-zA-Z0-9]+$')",
            "this is no key of a Secret: use letters, digits, '-', '_' and '.'",
        )])
    )]
    pub key: String,
}

impl SecretKeyReference {
    /// The name that a copy of the value is stored under.
    pub fn stored_name(&self) -> String {
        format!("secret/{}/{}", self.name, self.key)
    }
}
