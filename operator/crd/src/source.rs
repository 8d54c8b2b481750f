//! Where the files of an agent come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    reference::LocalReference,
    schema::{object_name_rule, path_rule, rule},
};

/// The files of an agent: CLAUDE.md, .claude/, .mcp.json and whatever else it needs. Exactly one of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [rule(
    "[has(self.inline), has(self.configMap), has(self.git), has(self.bundle)].filter(x, x).size() == 1",
    "a source is exactly one of inline, configMap, git and bundle: keep the one that has the agent's files",
)]))]
pub struct Source {
    /// The files stand here. Small agents only: the whole resource has at most 1 MiB or so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
    /// The files are in a ConfigMap of this namespace. A change of it is a new version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapSource>,
    /// The files are in a Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// The files were uploaded over REST. `ash deploy` writes this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleSource>,
}

/// Files in the resource itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline, extend("x-kubernetes-validations" = [rule(
    "self.files.exists(f, f.path == 'CLAUDE.md')",
    "the files have no CLAUDE.md: add one, with path: CLAUDE.md, that tells the agent what it is for",
)]))]
pub struct InlineSource {
    /// The files. One of them is CLAUDE.md.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub files: Vec<InlineFile>,
}

/// A file in the resource itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline, extend("x-kubernetes-validations" = [rule(
    "has(self.text) != has(self.base64)",
    "a file has either text or base64: keep one of them",
)]))]
pub struct InlineFile {
    /// The file's path in the agent's folder.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = [path_rule()]))]
    pub path: String,
    /// The file's content, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub text: Option<String>,
    /// The file's content, in base64, for what is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_398_104), extend("format" = "byte"))]
    pub base64: Option<String>,
    /// Whether the file can be executed, as a hook must be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// Files in a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct ConfigMapSource {
    /// The ConfigMap's name.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [object_name_rule()]))]
    pub name: String,
    /// Which keys become which files. Where absent every key is a file of that name at the top of the agent's folder; keys
    /// cannot have a '/', so files in folders need an item each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub items: Vec<ConfigMapFile>,
}

/// A key of a ConfigMap and the file that it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct ConfigMapFile {
    /// The key in the ConfigMap's data or binaryData.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// The file's path in the agent's folder.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = [path_rule()]))]
    pub path: String,
    /// Whether the file can be executed, as a hook must be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// Files in a Git repository, cloned in a pod of this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [rule(
    "!has(self.secretRef) || !self.url.startsWith('http://')",
    "a credential would cross the network in clear text: use an https:// or ssh:// URL, or remove secretRef",
)]))]
pub struct GitSource {
    /// The repository: https://host/path, http://host/path or ssh://git@host/path.
    #[schemars(
        length(max = 2048),
        extend("x-kubernetes-validations" = [
            rule(
                "self.matches('^(https|http|ssh)://[A-Za-z0-9]')",
                "this is no URL of a repository: use https://host/path or ssh://git@host/path",
            ),
            rule(
                "!self.matches('^https?://[^/]*@') && !self.matches('^ssh://[^/]*:[^/]*@')",
                "the URL has a password or token in it: put that into a Secret and name the Secret in secretRef",
            ),
        ])
    )]
    pub url: String,
    /// The branch, tag or commit. It is looked up when the spec changes, and the status says which commit it was; a full commit
    /// id says exactly which files are meant. The repository's own default branch where absent.
    #[serde(default = "default_revision")]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[A-Za-z0-9][A-Za-z0-9._/-]*$') && !self.contains('..')",
            "this is no revision: use the name of a branch or tag, or a full commit id",
        )])
    )]
    pub revision: String,
    /// The folder of the repository that is the agent. The whole repository where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = [path_rule()]))]
    pub path: Option<String>,
    /// A Secret of this namespace for private repositories, of the type kubernetes.io/basic-auth (username, password or token)
    /// or kubernetes.io/ssh-auth (ssh-privatekey, and known_hosts). A password is given to the server of the URL alone: redirects
    /// are not followed with it. Its key ca.crt, if there is one, has authorities to trust, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalReference>,
}

/// Files that were uploaded over REST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct BundleSource {
    /// The digest of the bundle: SHA-256 in lower-case hexadecimal.
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[0-9a-f]{64}$')",
            "this is no digest: it has 64 lower-case hexadecimal digits; `ash deploy` writes the right one",
        )])
    )]
    pub digest: String,
}

/// What the repository itself calls its default.
fn default_revision() -> String {
    "HEAD".to_owned()
}
