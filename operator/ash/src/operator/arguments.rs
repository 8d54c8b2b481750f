//! What `ash operator` can be told: on the command line, through `ASH_...` variables, and in a config file.

#![allow(clippy::doc_markdown, reason = "the comments on arguments are what --help prints")]

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Args, Command};
use secrecy::SecretString;

use crate::{
    serve::arguments::{CredentialArguments, LogFormat},
    values,
};

/// The name of the command.
pub(crate) const COMMAND: &str = "operator";

/// Variables under the names that other programs use, by the argument that they set.
pub(crate) const OTHER_VARIABLES: [(&str, &str); 3] = [
    ("database_url", "DATABASE_URL"),
    ("anthropic_api_key", "ANTHROPIC_API_KEY"),
    ("anthropic_auth_token", "ANTHROPIC_AUTH_TOKEN"),
];

/// The command alone, to know its arguments.
pub(crate) fn command() -> Command {
    Arguments::augment_args(Command::new(COMMAND))
}

/// Arguments of an operator. Every flag is also a variable and a key of the config file.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// YAML file with settings; its keys are these flags
    #[arg(long, env = "ASH_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Postgres database that it shares with the coordinators (also DATABASE_URL; better given as a variable)
    #[arg(long, env = "ASH_DATABASE_URL", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "URL")]
    pub(crate) database_url: Option<SecretString>,
    /// File with the secret that coordinators and runners share
    #[arg(long, env = "ASH_FLEET_SECRET_FILE", value_name = "FILE")]
    pub(crate) fleet_secret_file: Option<PathBuf>,
    /// File with the key from which those that sign sandboxes' tokens are made: 64 hexadecimal digits
    #[arg(long, env = "ASH_TOKEN_KEY_FILE", value_name = "FILE")]
    pub(crate) token_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) credentials: CredentialArguments,
    /// Key of the model API, for sessions that have none of their own (better given as ANTHROPIC_API_KEY)
    #[arg(long, env = "ASH_ANTHROPIC_API_KEY", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "KEY")]
    pub(crate) anthropic_api_key: Option<SecretString>,
    /// Bearer token of the model API instead of a key (better given as ANTHROPIC_AUTH_TOKEN)
    #[arg(long, env = "ASH_ANTHROPIC_AUTH_TOKEN", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "TOKEN")]
    pub(crate) anthropic_auth_token: Option<SecretString>,
    /// Namespaces to serve, with commas between; it touches nothing in any other
    #[arg(long, env = "ASH_NAMESPACES", action = ArgAction::Append, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) namespaces: Vec<String>,
    /// Namespace of the default tenant; every other tenant is called like its namespace
    #[arg(long, env = "ASH_DEFAULT_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub(crate) default_namespace: String,
    /// Namespace of the runners' Services and of the operator's lease
    #[arg(long, env = "ASH_RUNNER_NAMESPACE", default_value = "ash-system", value_name = "NAME")]
    pub(crate) runner_namespace: String,
    /// Who it is among its like [default: the variable POD_NAME, else the machine's name]
    #[arg(long, env = "ASH_OPERATOR_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where people reach the API; sessions have their address from it
    #[arg(long, env = "ASH_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Image of sandboxes, with bridge and Claude Code
    #[arg(long, env = "ASH_BRIDGE_IMAGE", value_name = "IMAGE")]
    pub(crate) bridge_image: String,
    /// Secrets of the served namespaces that the image is pulled with, with commas between
    #[arg(long, env = "ASH_IMAGE_PULL_SECRETS", action = ArgAction::Append, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) image_pull_secrets: Vec<String>,
    /// Give every sandbox a user namespace of its own
    #[arg(long, env = "ASH_USER_NAMESPACES", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", default_missing_value = "true",
        value_name = "BOOLEAN")]
    pub(crate) user_namespaces: bool,
    /// What a sandbox gets whose agent says nothing, as JSON: {"requests":{"cpu":"100m"},"limits":{"memory":"2Gi"}}
    #[arg(long, env = "ASH_SANDBOX_RESOURCES", value_name = "JSON")]
    pub(crate) sandbox_resources: Option<String>,
    /// Proxy through which pods that clone Git repositories reach https:// ones; tenants can read it, so without a password
    #[arg(long, env = "ASH_GIT_HTTPS_PROXY", value_name = "URL")]
    pub(crate) git_https_proxy: Option<String>,
    /// Names and networks that they reach without it, with commas between
    #[arg(long, env = "ASH_GIT_NO_PROXY", value_name = "NAMES")]
    pub(crate) git_no_proxy: Option<String>,
    /// File with certificate authorities that they trust beside those of the sandbox image, as PEM; read for each clone
    #[arg(long, env = "ASH_GIT_CA_FILE", value_name = "FILE")]
    pub(crate) git_ca_file: Option<PathBuf>,
    /// Address and port for GET /metrics and GET /health
    #[arg(long, env = "ASH_METRICS_LISTEN", default_value = "127.0.0.1:4101", value_name = "ADDRESS")]
    pub(crate) metrics_listen: SocketAddr,
    /// How log lines look
    #[arg(long, env = "ASH_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub(crate) log_format: LogFormat,
    /// What is logged, as directives of tracing: a level, or `target=level`, with commas between
    #[arg(long, env = "ASH_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
    /// Where SQLite keeps the database where no other is named, for tests
    #[arg(long, env = "ASH_DATA_DIR", default_value = "./data", value_name = "DIRECTORY")]
    pub(crate) data_dir: PathBuf,
}
