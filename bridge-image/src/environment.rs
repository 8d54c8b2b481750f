//! The session's own environment variables on a process that was started without them.
//!
//! Claude Code reads the file that `CLAUDE_ENV_FILE` names once and caches it; a file that it sources is read again at every
//! command. So the first one, written before the start, sources the second, which is written whenever the variables change.
//! Source: Claude Code 2.1.330 as observed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

/// The file that Claude Code caches, in its HOME.
const CACHED: &str = ".ash-environment.sh";

/// The file that is read at every command, beside it.
const SOURCED: &str = ".ash-session-environment.sh";

/// Names that would change Claude Code itself: they reach commands and MCP servers, not the process.
pub fn is_of_claude(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let exact = ["PATH", "HOME", "SHELL", "USER", "TMPDIR", "IS_SANDBOX", "API_TIMEOUT_MS", "NO_PROXY"];
    let prefixes = ["ANTHROPIC", "CLAUDE", "NODE_", "BUN_", "LD_", "SSL_CERT", "DISABLE_", "ENABLE_", "OTEL_", "MCP_"];
    exact.contains(&upper.as_str())
        || upper.ends_with("_PROXY")
        || prefixes.iter().any(|prefix| upper.starts_with(prefix))
}

/// Whether a shell takes it for a variable's name.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Quotes a value for a POSIX shell. NUL, which no variable can hold, is left out.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\0', "").replace('\'', r"'\''"))
}

/// The script that sets the variables; names that are no names are left out.
pub fn script(variables: &BTreeMap<String, String>) -> String {
    let mut script = String::new();
    for (name, value) in variables.iter().filter(|(name, _)| is_name(name)) {
        // Writing to a string cannot fail.
        let _ = writeln!(script, "export {name}={}", quote(value));
    }
    script
}

/// Makes the two files in a home and returns the one for `CLAUDE_ENV_FILE`.
pub fn prepare(home: &Path) -> io::Result<PathBuf> {
    let (cached, sourced) = (home.join(CACHED), home.join(SOURCED));
    let path = quote(&sourced.to_string_lossy());
    replace(&cached, &format!("if [ -f {path} ]; then . {path}; fi\n"))?;
    Ok(cached)
}

/// Writes the session's variables.
pub fn write(home: &Path, variables: &BTreeMap<String, String>) -> io::Result<()> {
    replace(&home.join(SOURCED), &script(variables))
}

/// Replaces a file in one step, so that no command reads half of it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    // Whatever is there, a link to somewhere else included, goes away; it is never written through.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    std::fs::rename(&new, path)
}

/// The complete set of MCP servers to give to Claude Code, or an empty one where its own reading of `.mcp.json` is enough.
///
/// `folder` is the text of the folder's `.mcp.json`, `settings` of its `.claude/settings.json`. Stdio servers of the folder
/// are replaced by themselves with the session's variables; the session's own servers come over them. `given` are those that
/// were given before: what was replaced once has to be given again, because leaving it out ends it.
pub fn mcp_servers(
    folder: Option<&str>,
    settings: Option<&str>,
    own: Option<&Map<String, Value>>,
    variables: &BTreeMap<String, String>,
    inherited: &BTreeMap<String, String>,
    given: &Map<String, Value>,
) -> Map<String, Value> {
    let field = |text: Option<&str>, name: &str| -> Value {
        let value: Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        value.get(name).cloned().unwrap_or_default()
    };
    let disabled = field(settings, "disabledMcpjsonServers");
    let is_disabled =
        |name: &str| disabled.as_array().is_some_and(|names| names.iter().any(|disabled| disabled == name));
    let Value::Object(servers) = field(folder, "mcpServers") else { return with_variables(own, variables) };
    let mut set: Map<String, Value> = servers
        .into_iter()
        .filter(|(name, server)| {
            let is_stdio = server.get("command").is_some_and(Value::is_string);
            (!variables.is_empty() || given.contains_key(name)) && is_stdio && !is_disabled(name)
        })
        .map(|(name, server)| {
            let server =
                expand(server, &|variable| variables.get(variable).or_else(|| inherited.get(variable)).cloned());
            (name, with_environment(server, variables))
        })
        .collect();
    set.extend(with_variables(own, variables));
    set
}

fn with_variables(own: Option<&Map<String, Value>>, variables: &BTreeMap<String, String>) -> Map<String, Value> {
    let own = own.into_iter().flatten();
    own.map(|(name, server)| (name.clone(), with_environment(server.clone(), variables))).collect()
}

/// A stdio server with the session's variables under its own, and with the arguments that Claude Code insists on.
fn with_environment(mut server: Value, variables: &BTreeMap<String, String>) -> Value {
    let Value::Object(fields) = &mut server else { return server };
    if !fields.contains_key("command") {
        return server;
    }
    fields.entry("type").or_insert_with(|| "stdio".into());
    fields.entry("args").or_insert_with(|| Value::Array(Vec::new()));
    let own = fields.remove("env");
    let mut environment: Map<String, Value> =
        variables.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    if let Some(Value::Object(own)) = own {
        environment.extend(own);
    }
    fields.insert("env".to_owned(), Value::Object(environment));
    server
}

/// Puts variables into every string, as Claude Code does when it reads `.mcp.json`: `${NAME}` and `${NAME:-default}`.
/// What is not set and has no default stays as it is.
fn expand(value: Value, lookup: &dyn Fn(&str) -> Option<String>) -> Value {
    match value {
        Value::String(text) => Value::String(expand_text(&text, lookup)),
        Value::Array(items) => items.into_iter().map(|item| expand(item, lookup)).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, field)| (name, expand(field, lookup))).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}

fn expand_text(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        expanded.push_str(before);
        let Some((inside, behind)) = after.split_once('}') else {
            expanded.push_str("${");
            rest = after;
            continue;
        };
        let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
        match lookup(name).or_else(|| default.map(str::to_owned)) {
            Some(value) => expanded.push_str(&value),
            None => {
                let _ = write!(expanded, "${{{inside}}}");
            }
        }
        rest = behind;
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::BTreeMap, process::Command};

    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::{is_of_claude, mcp_servers, script};

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_shell_reads_back_what_was_written(value in "[^\\x00]{0,60}") {
            let script = format!("{}printf %s \"$ASH_VALUE\"", script(&variables(&[("ASH_VALUE", &value)])));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }

    #[test]
    fn a_name_that_is_no_name_runs_nothing() {
        assert_eq!(script(&variables(&[("A;touch x", "1"), ("1A", "1"), ("", "1")])), "");
    }

    #[test]
    fn names_that_steer_claude_are_known() {
        for name in ["ANTHROPIC_BASE_URL", "https_proxy", "NODE_OPTIONS", "PATH", "CLAUDE_CONFIG_DIR"] {
            assert!(is_of_claude(name), "{name}");
        }
        assert!(!is_of_claude("DATABASE_URL"));
    }

    #[test]
    fn servers_of_the_folder_get_the_variables_and_their_own_win() {
        let folder = r#"{"mcpServers": {
            "a": {"command": "run", "env": {"KEY": "${TOKEN}", "OTHER": "${GONE:-none}", "X": "own"}},
            "off": {"command": "run"}, "remote": {"type": "http", "url": "https://x"}}}"#;
        let settings = r#"{"disabledMcpjsonServers": ["off"]}"#;
        let set = mcp_servers(
            Some(folder),
            Some(settings),
            json!({"mine": {"type": "http", "url": "u"}}).as_object(),
            &variables(&[("TOKEN", "t"), ("X", "session")]),
            &BTreeMap::new(),
            &Map::new(),
        );
        assert_eq!(
            serde_json::Value::Object(set),
            json!({
                "a": {"type": "stdio", "command": "run", "args": [],
                      "env": {"KEY": "t", "OTHER": "none", "TOKEN": "t", "X": "own"}},
                "mine": {"type": "http", "url": "u"},
            })
        );
    }

    #[test]
    fn without_variables_the_folder_is_left_to_claude() {
        let folder = r#"{"mcpServers": {"a": {"command": "run"}}}"#;
        let none = BTreeMap::new();
        assert!(mcp_servers(Some(folder), None, None, &none, &none, &Map::new()).is_empty());
        assert!(mcp_servers(Some("no JSON"), None, None, &none, &none, &Map::new()).is_empty());
    }
}
