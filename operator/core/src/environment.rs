//! Which environment variables a session may have: one rule for what REST brings, for what a manifest says, and for what is
//! read out of a Secret.

use std::collections::BTreeMap;

/// Variables that one request may bring.
pub const MAX_VARIABLES: usize = 256;
/// The longest name: 256 bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// The longest value: 32 KiB. Linux takes 128 KiB for one variable.
pub const MAX_VALUE_BYTES: usize = 32 << 10;
/// All names and values of one request together: 256 KiB.
pub const MAX_BYTES: usize = 256 << 10;

/// Why an environment is refused; always names the variable and never repeats a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No name.
    #[error("{0:?} is no name for an environment variable: use letters, digits and '_', not beginning with a digit")]
    Name(String),
    /// A key for the model.
    #[error(
        "{0} is a key for the model: it belongs to the gateway and never into a sandbox, and keys per session are not \
         supported by this release: configure the key on the server"
    )]
    ModelKey(String),
    /// A base URL or a proxy.
    #[error("{0} would change where the sandbox's traffic goes: that is the gateway's alone; remove it")]
    Route(String),
    /// A name of Ash's own.
    #[error("{0} is set by Ash for every sandbox: remove it{hint}", hint = hint(.0))]
    Reserved(String),
    /// A value that no process could have.
    #[error("{0} is longer than {MAX_VALUE_BYTES} bytes or has a NUL character")]
    Value(String),
    /// Over the bounds of number or size.
    #[error("more than {MAX_VARIABLES} environment variables, or more than {} KiB of them", MAX_BYTES >> 10)]
    TooMuch,
}

fn hint(name: &str) -> &'static str {
    match name {
        "ANTHROPIC_MODEL" => " and use the option model",
        _ => "",
    }
}

/// Names, in upper case, that Ash sets itself, or that would change how its own programs start.
pub const RESERVED: [&str; 16] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "OLDPWD",
    "IFS",
    "ENV",
    "BASH_ENV",
    "BASHOPTS",
    "SHELLOPTS",
    "PS4",
    "PROMPT_COMMAND",
    "IS_SANDBOX",
    "CLAUDECODE",
];

/// Prefixes of such names. What begins with `ANTHROPIC_` or `CLAUDE_` configures Claude Code itself, which is warm before the
/// session's variables exist: it could not take effect.
pub const RESERVED_PREFIXES: [&str; 5] = ["ANTHROPIC_", "CLAUDE_", "LD_", "ASH_", "BASH_FUNC_"];

/// Names, in upper case, of keys for the model.
pub const MODEL_KEYS: [&str; 4] =
    ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_BEARER_TOKEN_BEDROCK"];

/// Checks the environment that a request brings.
pub fn check(environment: &BTreeMap<String, String>) -> Result<(), Refused> {
    let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    if environment.len() > MAX_VARIABLES || bytes > MAX_BYTES {
        return Err(Refused::TooMuch);
    }
    environment.iter().try_for_each(|(name, value)| {
        check_name(name)?;
        if value.len() > MAX_VALUE_BYTES || value.contains('\0') {
            return Err(Refused::Value(name.clone()));
        }
        Ok(())
    })
}

/// Checks one name.
pub fn check_name(name: &str) -> Result<(), Refused> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let digit_first = name.as_bytes().first().is_none_or(u8::is_ascii_digit);
    if digit_first || name.len() > MAX_NAME_BYTES || !name.bytes().all(plain) {
        return Err(Refused::Name(name.chars().take(80).collect()));
    }
    let upper = name.to_ascii_uppercase();
    if MODEL_KEYS.contains(&upper.as_str()) {
        return Err(Refused::ModelKey(name.to_owned()));
    }
    if upper.ends_with("_PROXY") || (upper.starts_with("ANTHROPIC_") && upper.ends_with("_BASE_URL")) {
        return Err(Refused::Route(name.to_owned()));
    }
    if RESERVED.contains(&upper.as_str()) || RESERVED_PREFIXES.iter().any(|prefix| upper.starts_with(prefix)) {
        return Err(Refused::Reserved(name.to_owned()));
    }
    Ok(())
}

/// The same names, each with `***` for its value.
pub fn masked<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeMap<&'a str, &'static str> {
    names.into_iter().map(|name| (name.as_str(), "***")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Refused, check, check_name};

    #[test]
    fn ordinary_names_pass() {
        for name in ["GITHUB_TOKEN", "a", "_X1", "OPENAI_API_KEY", "DATABASE_URL", "PROXY", "MY_PATH"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_change_the_sandbox_are_refused() {
        for name in ["ANTHROPIC_API_KEY", "anthropic_auth_token", "CLAUDE_CODE_OAUTH_TOKEN"] {
            assert!(matches!(check_name(name), Err(Refused::ModelKey(_))), "{name}");
        }
        for name in ["HTTPS_PROXY", "http_proxy", "NO_PROXY", "ANTHROPIC_BASE_URL", "ANTHROPIC_VERTEX_BASE_URL"] {
            assert!(matches!(check_name(name), Err(Refused::Route(_))), "{name}");
        }
        for name in ["PATH", "HOME", "LD_PRELOAD", "CLAUDE_CODE_X", "CLAUDE_ENV_FILE", "ANTHROPIC_MODEL", "BASH_ENV"] {
            assert!(matches!(check_name(name), Err(Refused::Reserved(_))), "{name}");
        }
        for name in ["", "1A", "A B", "A=B", "Ä", "A\n", "BASH_FUNC_x%%"] {
            assert!(matches!(check_name(name), Err(Refused::Name(_))), "{name}");
        }
    }

    #[test]
    fn values_never_come_back() {
        let refused = check(&[("SECRET".to_owned(), "hush\0".to_owned())].into()).unwrap_err();
        assert!(!refused.to_string().contains("hush"));
        let many = (0..257).map(|n| (format!("A{n}"), String::new())).collect();
        assert_eq!(check(&many), Err(Refused::TooMuch));
    }
}
