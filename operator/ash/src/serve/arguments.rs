//! What `ash serve` can be told: on the command line, through `ASH_...` variables, and in a config file.

#![allow(clippy::doc_markdown, reason = "the comments on arguments are what --help prints")]

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{ArgAction, Args, Command, ValueEnum};
use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{
    serve::programs,
    values::{self, Size},
};

/// The name of the command.
pub(crate) const COMMAND: &str = "serve";

/// The id of the argument that names the config file.
pub(crate) const CONFIG: &str = "config";

/// Variables under the names that other programs use, by the argument that they set; the later one wins. An `ASH_...` variable
/// stands over them.
pub(crate) const OTHER_VARIABLES: [(&str, &str); 8] = [
    ("database_url", "DATABASE_URL"),
    ("anthropic_base_url", "ANTHROPIC_BASE_URL"),
    ("anthropic_api_key", "ANTHROPIC_API_KEY"),
    ("anthropic_auth_token", "ANTHROPIC_AUTH_TOKEN"),
    ("https_proxy", "https_proxy"),
    ("https_proxy", "HTTPS_PROXY"),
    ("no_proxy", "no_proxy"),
    ("no_proxy", "NO_PROXY"),
];

/// The command alone, to know its arguments.
pub(crate) fn command() -> Command {
    Arguments::augment_args(Command::new(COMMAND))
}

/// What to do where a protection of the sandbox is missing on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SandboxPolicy {
    /// Start with what there is, and say what is missing
    BestEffort,
    /// Refuse to start
    Strict,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Pretty,
    /// One JSON object a line
    Json,
}

/// Arguments of the server. Every flag is also a variable (`--data-dir`: `ASH_DATA_DIR`) and a key of the config file (`dataDir`
/// or `data-dir`). A flag stands over a variable, a variable over the file.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// YAML file with settings; its keys are these flags (dataDir or data-dir)
    #[arg(long, env = "ASH_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address and port to listen on
    #[arg(long, env = "ASH_LISTEN", default_value = "127.0.0.1:4100")]
    pub(crate) listen: SocketAddr,
    /// Where everything is kept that has to last
    #[arg(long, env = "ASH_DATA_DIR", default_value = "./data", value_name = "DIRECTORY")]
    pub(crate) data_dir: PathBuf,
    /// Postgres database instead of SQLite in the data directory, such as postgres://user:password@host:5432/name (also
    /// DATABASE_URL; better given as a variable: a list of processes shows flags)
    #[arg(long, env = "ASH_DATABASE_URL", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "URL")]
    pub(crate) database_url: Option<SecretString>,
    /// API key that clients may use; one that an earlier start generated (initial-api-key of the data directory) works, too.
    /// Without it, the first start generates one
    #[arg(long, env = "ASH_API_KEY", hide_env_values = true, value_parser = values::secret, value_name = "KEY")]
    pub(crate) api_key: Option<SecretString>,
    /// Connections of clients at once, one for each open stream; further ones wait. Never more than the process may have open files
    #[arg(long, env = "ASH_MAX_CONNECTIONS", default_value_t = 16_384,
        value_parser = clap::value_parser!(u32).range(16..=1_000_000), value_name = "NUMBER")]
    pub(crate) max_connections: u32,
    /// The longest wait of a graceful stop for running turns
    #[arg(long, env = "ASH_SHUTDOWN_TIMEOUT", value_parser = values::duration, default_value = "30s", value_name = "TIME")]
    pub(crate) shutdown_timeout: Duration,
    /// On a graceful stop, leave the sandboxes for the next server
    #[arg(long, env = "ASH_HANDOVER", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", default_missing_value = "true",
        value_name = "BOOLEAN")]
    pub(crate) handover: bool,
    /// How long the partial messages of a turn are kept after it ended; its complete messages stay
    #[arg(long, env = "ASH_COMPACT_AFTER", value_parser = values::duration, default_value = "10m", value_name = "TIME")]
    pub(crate) compact_after: Duration,
    /// How log lines look
    #[arg(long, env = "ASH_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub(crate) log_format: LogFormat,
    /// What is logged, as directives of tracing: a level, or `target=level`, with commas between
    #[arg(long, env = "ASH_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,

    /// Key of the model API (better given as ANTHROPIC_API_KEY: a list of processes shows flags)
    #[arg(long, env = "ASH_ANTHROPIC_API_KEY", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "KEY", help_heading = "Model")]
    pub(crate) anthropic_api_key: Option<SecretString>,
    /// Bearer token of the model API instead of a key (better given as ANTHROPIC_AUTH_TOKEN)
    #[arg(long, env = "ASH_ANTHROPIC_AUTH_TOKEN", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "TOKEN", help_heading = "Model")]
    pub(crate) anthropic_auth_token: Option<SecretString>,

    #[command(flatten)]
    pub(crate) credentials: CredentialArguments,
    #[command(flatten)]
    pub(crate) upstream: UpstreamArguments,
    #[command(flatten)]
    pub(crate) sandboxes: SandboxArguments,
    #[command(flatten)]
    pub(crate) fleet: FleetArguments,
}

/// What stored credentials are encrypted with.
#[derive(Debug, Args)]
pub(crate) struct CredentialArguments {
    /// Key that stored credentials are encrypted with: 64 hexadecimal digits (`openssl rand -hex 32`); keys that it replaces
    /// stand behind it, with commas between. Standalone, one is made in the data directory
    #[arg(long, env = "ASH_CREDENTIAL_KEY", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "KEY", help_heading = "Credentials")]
    pub(crate) credential_key: Option<SecretString>,
    /// File with that key; one on each line
    #[arg(long, env = "ASH_CREDENTIAL_KEY_FILE", value_name = "FILE", help_heading = "Credentials")]
    pub(crate) credential_key_file: Option<PathBuf>,
}

/// Where the model API is. The same for a server and for a runner.
#[derive(Debug, Args)]
pub(crate) struct UpstreamArguments {
    /// Address of the model API (also ANTHROPIC_BASE_URL)
    #[arg(
        long,
        env = "ASH_ANTHROPIC_BASE_URL",
        default_value = "https://api.anthropic.com",
        value_name = "URL",
        help_heading = "Model"
    )]
    pub(crate) anthropic_base_url: Url,
    /// Proxy to the model API (also HTTPS_PROXY); may hold a password
    #[arg(long, env = "ASH_HTTPS_PROXY", hide_env_values = true, hide_default_value = true,
        value_parser = values::secret, value_name = "URL", help_heading = "Model")]
    pub(crate) https_proxy: Option<SecretString>,
    /// Hosts that are reached without the proxy, with commas between (also NO_PROXY)
    #[arg(long, env = "ASH_NO_PROXY", value_name = "HOSTS", help_heading = "Model")]
    pub(crate) no_proxy: Option<String>,
    /// PEM file of certificate authorities to trust for the model API beside the system's
    #[arg(long, env = "ASH_UPSTREAM_CA_FILE", value_name = "FILE", help_heading = "Model")]
    pub(crate) upstream_ca_file: Option<PathBuf>,
    /// Header for every request to the model API, as `NAME: VALUE`; can be repeated (in the variable: lines)
    #[arg(long, env = "ASH_UPSTREAM_HEADER", hide_env_values = true, hide_default_value = true, action = ArgAction::Append,
        value_delimiter = '\n', value_parser = values::secret, value_name = "HEADER", help_heading = "Model")]
    pub(crate) upstream_header: Vec<SecretString>,
}

/// Sandboxes and what runs in them. The same for a server and for a runner.
#[derive(Debug, Args)]
pub(crate) struct SandboxArguments {
    /// Claude Code [default: where `make quickstart` put it, else `claude` on the PATH]
    #[arg(long, env = "ASH_CLAUDE", value_name = "PROGRAM")]
    pub(crate) claude: Option<PathBuf>,
    /// Start with another release of Claude Code than the one that this server was made for
    #[arg(long, env = "ASH_ANY_CLAUDE_VERSION", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", default_missing_value = "true",
        value_name = "BOOLEAN")]
    pub(crate) any_claude_version: bool,
    /// The bridge [default: `ash-bridge` beside this program]
    #[arg(long, env = "ASH_BRIDGE", value_name = "PROGRAM")]
    pub(crate) bridge: Option<PathBuf>,
    /// What to do where a protection of the sandbox is missing
    #[arg(long, env = "ASH_SANDBOX_POLICY", value_enum, default_value = "best-effort")]
    pub(crate) sandbox_policy: SandboxPolicy,
    /// How long a session keeps its sandbox unused
    #[arg(long, env = "ASH_IDLE_TIMEOUT", value_parser = values::duration, default_value = "15m", value_name = "TIME")]
    pub(crate) idle_timeout: Duration,
    /// How long a message waits for a sandbox's place before it is refused with 503 (for tests) [default: 30s]
    #[arg(long, env = "ASH_CAPACITY_WAIT", value_parser = values::duration, value_name = "TIME", hide = true)]
    pub(crate) capacity_wait: Option<Duration>,
    /// How long a permission request waits for its answer before it is denied
    #[arg(long, env = "ASH_PERMISSION_TIMEOUT", value_parser = values::duration, default_value = "10m", value_name = "TIME")]
    pub(crate) permission_timeout: Duration,
    /// Sandboxes at the most
    #[arg(long, env = "ASH_MAX_SANDBOXES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000),
        value_name = "NUMBER", help_heading = "Sandboxes")]
    pub(crate) max_sandboxes: u32,
    /// Sandboxes that are kept warm for each agent
    #[arg(long, env = "ASH_WARM", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000),
        value_name = "NUMBER", help_heading = "Sandboxes")]
    pub(crate) warm: u32,
    /// Memory of a sandbox, 8MiB at the least
    #[arg(long, env = "ASH_MEMORY", value_parser = values::memory, default_value = "2GiB", value_name = "SIZE",
        help_heading = "Sandboxes")]
    pub(crate) memory: Size,
    /// Processors of a sandbox, in thousandths once read: 0.5 is half of one
    #[arg(long = "cpus", env = "ASH_CPUS", value_parser = values::processors, default_value = "2", value_name = "NUMBER",
        help_heading = "Sandboxes")]
    pub(crate) cpu_millis: u32,
    /// Processes and threads of a sandbox
    #[arg(long, env = "ASH_PROCESSES", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_000_000),
        value_name = "NUMBER", help_heading = "Sandboxes")]
    pub(crate) processes: u32,
    /// Disk use of a workspace
    #[arg(long, env = "ASH_WORKSPACE_QUOTA", default_value = "10GiB", value_name = "SIZE", help_heading = "Sandboxes")]
    pub(crate) workspace_quota: Size,
    /// Bytes of a workspace's files, holes aside, up to which snapshots are taken of it; where sandboxes are pods, as much as the
    /// largest workspace of an agent may hold [default: the workspace quota]
    #[arg(long, env = "ASH_SNAPSHOT_QUOTA", value_name = "SIZE", help_heading = "Sandboxes")]
    pub(crate) snapshot_quota: Option<Size>,
    /// Memory for what sessions wrote and the log has not yet, of all sessions together: at it they are read no further until the
    /// log has it; 65MiB at the least [default: half of what this process may use]
    #[arg(long, env = "ASH_LOG_MEMORY", value_parser = values::log_memory, value_name = "SIZE", help_heading = "Sandboxes")]
    pub(crate) log_memory: Option<Size>,
    /// Where snapshots of workspaces are kept: a folder, or `s3://BUCKET/PREFIX` with server and keys in the variables AWS_ENDPOINT,
    /// AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ALLOW_HTTP=true without TLS). Coordinators and runners name the
    /// same [default: `snapshots` in the data directory of a server by itself; a runner takes none]
    #[arg(long, env = "ASH_OBJECT_STORE", value_name = "ADDRESS", help_heading = "Sandboxes")]
    pub(crate) object_store: Option<String>,
    /// Host or network that sandboxes may reach although it is not public: a name, an address, or address/length; can be
    /// repeated
    #[arg(long, env = "ASH_EGRESS_ALLOW", action = ArgAction::Append, value_delimiter = ',', value_name = "TARGET",
        help_heading = "Sandboxes")]
    pub(crate) egress_allow: Vec<String>,
    /// Network that sandboxes may not reach although it is public, such as that of a cluster's pods, services or nodes: an
    /// address, or address/length; can be repeated
    #[arg(long, env = "ASH_EGRESS_FORBID", action = ArgAction::Append, value_delimiter = ',', value_name = "NETWORK",
        help_heading = "Sandboxes")]
    pub(crate) egress_forbid: Vec<String>,
}

/// What only a coordinator needs.
#[derive(Debug, Args)]
pub(crate) struct FleetArguments {
    /// What this process is
    #[arg(long, env = "ASH_MODE", value_enum, default_value = "standalone", help_heading = "Fleet")]
    pub(crate) mode: Mode,
    /// Address and port for runners (coordinator)
    #[arg(
        long,
        env = "ASH_FLEET_LISTEN",
        default_value = "127.0.0.1:4200",
        value_name = "ADDRESS",
        help_heading = "Fleet"
    )]
    pub(crate) fleet_listen: SocketAddr,
    /// File with the secret that coordinators and runners share (coordinator)
    #[arg(long, env = "ASH_FLEET_SECRET_FILE", value_name = "FILE", help_heading = "Fleet")]
    pub(crate) fleet_secret_file: Option<PathBuf>,
    /// Key from which those that sign sandboxes' tokens are made: 64 hexadecimal digits (coordinator)
    #[arg(long, env = "ASH_TOKEN_KEY", hide_env_values = true, hide_default_value = true, value_parser = values::secret,
        value_name = "KEY", help_heading = "Fleet")]
    pub(crate) token_key: Option<SecretString>,
    /// File with that key (coordinator)
    #[arg(long, env = "ASH_TOKEN_KEY_FILE", value_name = "FILE", help_heading = "Fleet")]
    pub(crate) token_key_file: Option<PathBuf>,
    /// Keep what people want in the resources of the Kubernetes cluster that this is in, or that KUBECONFIG names, and take its
    /// tokens as with --kubernetes-auth (coordinator)
    #[arg(long, env = "ASH_KUBERNETES", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", default_missing_value = "true",
        value_name = "BOOLEAN", help_heading = "Fleet")]
    pub(crate) kubernetes: bool,
    /// Take tokens of the Kubernetes cluster that this is in, or that KUBECONFIG names, for the audience `ash`, beside API keys
    #[arg(long, env = "ASH_KUBERNETES_AUTH", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", default_missing_value = "true",
        value_name = "BOOLEAN", help_heading = "Fleet")]
    pub(crate) kubernetes_auth: bool,
    /// Namespaces of the cluster that are served, each a tenant, with commas between
    #[arg(long, env = "ASH_NAMESPACES", action = ArgAction::Append, value_delimiter = ',', value_name = "NAMES",
        help_heading = "Fleet")]
    pub(crate) namespaces: Vec<String>,
    /// What the sandboxes of the runners are (coordinator)
    #[arg(long = "sandboxes", env = "ASH_SANDBOXES", value_enum, default_value = "processes", help_heading = "Fleet")]
    pub(crate) sandbox_kind: SandboxKind,
    /// Namespace of the default tenant; every other tenant is named like its namespace
    #[arg(long, env = "ASH_DEFAULT_NAMESPACE", default_value = "default", value_name = "NAME", help_heading = "Fleet")]
    pub(crate) default_namespace: String,
    /// File with the API key that clients need (coordinator)
    #[arg(long, env = "ASH_API_KEY_FILE", value_name = "FILE", help_heading = "Fleet")]
    pub(crate) api_key_file: Option<PathBuf>,
}

/// What sandboxes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SandboxKind {
    /// Processes of their runner's machine
    #[value(alias = "process")]
    Processes,
    /// Pods of a Kubernetes cluster, which its operator makes (`ash operator`)
    Pods,
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Everything in one process
    Standalone,
    /// The API, with the sandboxes on runners (`ash runner`)
    Coordinator,
}

impl SandboxArguments {
    /// The Claude Code program: as given, else the pinned one in the cache of `make quickstart`, else the one on the `PATH`.
    pub(crate) fn claude(&self) -> anyhow::Result<PathBuf> {
        programs::claude(
            self.claude.as_deref(),
            std::env::var_os("HOME").as_deref(),
            std::env::var_os("PATH").as_deref(),
        )
    }

    /// The bridge: as given, else the one beside this program.
    pub(crate) fn bridge(&self) -> anyhow::Result<PathBuf> {
        let own =
            std::env::current_exe().context("cannot find this program's own folder; name the bridge with --bridge")?;
        programs::bridge(self.bridge.as_deref(), &own)
    }
}

impl UpstreamArguments {
    /// The headers for the model API. An error says which one is wrong and not what is in it.
    pub(crate) fn upstream_headers(&self) -> anyhow::Result<Vec<(HeaderName, SecretString)>> {
        let headers = self.upstream_header.iter().enumerate().map(|(index, header)| {
            let read = || {
                let (name, value) = header.expose_secret().split_once(':')?;
                let value = value.trim();
                HeaderValue::from_str(value).ok()?;
                Some((name.trim().parse().ok()?, SecretString::from(value)))
            };
            read().with_context(|| format!("number {} of --upstream-header is not written as NAME: VALUE", index + 1))
        });
        headers.collect()
    }
}
