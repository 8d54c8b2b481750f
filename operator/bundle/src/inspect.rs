//! What Ash has to know of an agent's own settings before it starts one.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Bundle, BundleError};

/// The files in which a project says what Claude Code runs on its own account.
const SETTINGS: [&str; 2] = [".claude/settings.json", ".claude/settings.local.json"];

/// The file in which a project names its MCP servers.
const MCP: &str = ".mcp.json";

impl Bundle {
    /// Whether the agent brings hooks: in its settings, or possibly through a plugin that they enable. Such an agent is not
    /// rehearsed, because a rehearsal would run them. Settings that cannot be read count as yes.
    pub fn has_hooks(&self) -> bool {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Settings {
            #[serde(default)]
            hooks: Option<serde_json::Value>,
            #[serde(default)]
            enabled_plugins: Option<serde_json::Value>,
        }
        let any = |value: Option<serde_json::Value>| match value {
            None | Some(serde_json::Value::Null) => false,
            Some(serde_json::Value::Object(entries)) => !entries.is_empty(),
            Some(serde_json::Value::Array(entries)) => !entries.is_empty(),
            Some(_) => true,
        };
        SETTINGS.iter().filter_map(|path| self.file(path)).any(|file| {
            serde_json::from_slice::<Settings>(&file.bytes)
                .map_or(true, |settings| any(settings.hooks) || any(settings.enabled_plugins))
        })
    }

    /// The model that the agent's own settings name: Claude Code would forget it, since it is warm before it has the folder.
    pub fn model(&self) -> Option<String> {
        let settings: serde_json::Value = serde_json::from_slice(&self.file(SETTINGS[0])?.bytes).ok()?;
        let named = [&settings["env"]["ANTHROPIC_MODEL"], &settings["model"]];
        let is_name = |text: &&str| !text.trim().is_empty() && text.len() <= 256 && !text.chars().any(char::is_control);
        named.into_iter().filter_map(serde_json::Value::as_str).find(is_name).map(ToOwned::to_owned)
    }

    /// The names of the MCP servers in `.mcp.json`, sorted; none where there is no such file.
    pub fn mcp_servers(&self) -> Result<Vec<String>, BundleError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mcp {
            #[serde(default)]
            mcp_servers: BTreeMap<String, serde_json::Value>,
        }
        let Some(file) = self.file(MCP) else { return Ok(Vec::new()) };
        let mcp: Mcp = serde_json::from_slice(&file.bytes)
            .map_err(|error| BundleError::InvalidSettings { path: MCP, reason: error.to_string() })?;
        Ok(mcp.mcp_servers.into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::{Bundle, BundleError};

    fn bundle(path: &str, text: &str) -> Bundle {
        Bundle::from_files([("CLAUDE.md".to_owned(), vec![]), (path.to_owned(), text.as_bytes().to_vec())]).unwrap()
    }

    #[test]
    fn hooks_are_seen_wherever_they_are() {
        let settings = ".claude/settings.json";
        for (path, text, hooks) in [
            (settings, r#"{"hooks":{"PreToolUse":[]}}"#, true),
            (".claude/settings.local.json", r#"{"hooks":{"Stop":[]}}"#, true),
            (settings, r#"{"enabledPlugins":{"a@b":true}}"#, true),
            (settings, "not json", true),
            (settings, r#"{"hooks":{},"permissions":{"allow":["Bash"]}}"#, false),
            (settings, r#"{"hooks":null}"#, false),
            ("hooks.json", r#"{"hooks":{"Stop":[]}}"#, false),
        ] {
            assert_eq!(bundle(path, text).has_hooks(), hooks, "{path} {text}");
        }
    }

    #[test]
    fn mcp_servers_are_named() {
        assert!(bundle("x", "").mcp_servers().unwrap().is_empty());
        let named = bundle(".mcp.json", r#"{"mcpServers":{"b":{"command":"x"},"a":{}}}"#);
        assert_eq!(named.mcp_servers().unwrap(), ["a", "b"]);
        let error = bundle(".mcp.json", "{").mcp_servers().unwrap_err();
        assert!(matches!(error, BundleError::InvalidSettings { path: ".mcp.json", .. }));
    }
}
