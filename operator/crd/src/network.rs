//! Where a sandbox may connect to, as a manifest says it.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::schema::rule;

/// Where a sandbox may connect to beside the model. Whatever the mode: never to the cluster, to private, loopback or metadata
/// addresses, unless the operator of Ash allows them by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    rule(
        "self.mode != 'allowlist' || (has(self.hosts) && self.hosts.size() > 0)",
        "the network mode allowlist needs hosts: list at least one, or use the mode model to allow none",
    ),
    rule(
        "self.mode == 'allowlist' || !has(self.hosts) || self.hosts.size() == 0",
        "hosts count in the network mode allowlist only: set mode to allowlist, or remove hosts",
    ),
]))]
pub struct Network {
    /// model: to the model and nowhere else. allowlist: to the hosts of the list, too. public: to any public address; the
    /// default.
    #[serde(default)]
    pub mode: NetworkMode,
    /// The hosts of the mode allowlist: a name (github.com), or a name with everything below it (*.github.com), each with a
    /// port after a colon where it is not 443.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hosts")]
    pub hosts: Vec<String>,
}

/// How far the network of a sandbox reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum NetworkMode {
    /// To the model and nowhere else.
    Model,
    /// To the hosts of a list, too.
    Allowlist,
    /// To any public address.
    #[default]
    Public,
}

/// A label of a host name (RFC 1035, with '_').
const LABEL: &str = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?";

fn hosts(_: &mut SchemaGenerator) -> Schema {
    let form = format!(
        "self.matches('^([*][.])?{LABEL}([.]{LABEL})*(:[0-9]{{1,5}})?$') && (!self.contains(':') || \
         (int(self.split(':')[1]) >= 1 && int(self.split(':')[1]) <= 65535))"
    );
    let message = "this is no host of an allowlist: use name, *.name, name:port or *.name:port, without https:// and without a path";
    // Programs read every name that ends in a number as IPv4, in many notations: the gateway takes one of them.
    let address = "!self.matches('(^|[.])([0-9]+|0[xX][0-9a-fA-F]*)(:[0-9]+)?$') || isIP(self.split(':')[0])";
    let address_message =
        "this host ends in a number, so it is an IPv4 address: write it as four decimal numbers, such as 192.0.2.1";
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": 259, "x-kubernetes-validations": [rule(&form, message), rule(address, address_message)] },
    })
}
